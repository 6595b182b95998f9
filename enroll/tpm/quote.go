package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/google/go-tpm/tpm2"

	"wardlink/enroll/verify"
)

// EventLog is where the kernel shows the firmware's event log (TCG PC Client Platform Firmware Profile, 10). Many ARM boards have none: U-Boot
// hands one over only where its device tree says where.
const EventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"

// ErrNoBank: the TPM keeps no PCRs by SHA-256.
var ErrNoBank = errors.New("the TPM's SHA-256 bank of PCRs is off: switch it on (tpm2_pcrallocate sha256:all, or the firmware setup) and start the machine again")

// quoteTries is how often a quote is made when a PCR was extended between reading and quoting.
const quoteTries = 4

// Quote is the AK's word for the PCRs of verify.QuotedPCRs. It proves the state of this boot to whoever gave the qualifying data.
type Quote struct {
	Attest    []byte   // TPMS_ATTEST
	Signature []byte   // TPMT_SIGNATURE
	PCRs      [][]byte // SHA-256 values, in the order of the PCRs' numbers
}

// Quote has the AK sign the PCRs' values over qualifying. ErrNoBank for a TPM that has none by SHA-256.
func (k *Keys) Quote(ctx context.Context, qualifying [32]byte) (Quote, error) {
	return value(ctx, k.tpm, "quote the PCRs", func(c *conn) (out Quote, err error) {
		err = c.withKeys(func(loaded []tpm2.NamedHandle) error {
			for range quoteTries {
				out, err = c.quote(loaded[0], qualifying)
				if !errors.Is(err, errMoved) {
					return err
				}
			}
			return err
		}, k.ak)
		return out, err
	})
}

// errMoved: the values that were read are not those that the TPM quoted. Nothing protects the reading; the quote does.
var errMoved = errors.New("the PCRs change while they are quoted")

func (c *conn) quote(ak tpm2.NamedHandle, qualifying [32]byte) (out Quote, err error) {
	if out.PCRs, err = c.pcrs(verify.QuotedPCRs); err != nil {
		return Quote{}, err
	}
	ek, h, release, err := c.loadEK()
	if err != nil {
		return Quote{}, err
	}
	defer release()
	answer, err := tpm2.Quote{
		SignHandle:     auth(ak, session(ek, h, tpm2.AESEncryption(128, tpm2.EncryptInOut))),
		QualifyingData: tpm2.TPM2BData{Buffer: qualifying[:]},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect:      selection(verify.QuotedPCRs),
	}.Execute(c)
	if err != nil {
		return Quote{}, err
	}
	// The digest of the values ends a TPMS_ATTEST of this kind (TPM 2.0 Part 2, 10.12.1). Reading the structure would cost an agent's program more
	// than all the rest of the quote; the hospital reads it.
	if sum := sha256.Sum256(bytes.Join(out.PCRs, nil)); !bytes.HasSuffix(answer.Quoted.Bytes(), sum[:]) {
		return Quote{}, errMoved
	}
	out.Attest, out.Signature = answer.Quoted.Bytes(), tpm2.Marshal(answer.Signature)
	return out, nil
}

// selection names PCRs of the SHA-256 bank, a bit for each.
func selection(pcrs uint32) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256,
		PCRSelect: []byte{byte(pcrs), byte(pcrs >> 8), byte(pcrs >> 16)}}}}
}

// pcrs reads the values of PCRs. A TPM gives as many at a time as it likes, eight at most, the lowest first.
func (c *conn) pcrs(want uint32) (out [][]byte, err error) {
	for want != 0 {
		answer, err := tpm2.PCRRead{PCRSelectionIn: selection(want)}.Execute(c)
		if err != nil {
			return nil, err
		}
		var got uint32
		for _, s := range answer.PCRSelectionOut.PCRSelections {
			for i, b := range s.PCRSelect[:min(3, len(s.PCRSelect))] {
				if s.Hash == tpm2.TPMAlgSHA256 {
					got |= uint32(b) << (8 * i)
				}
			}
		}
		if got&want == 0 {
			return nil, ErrNoBank
		}
		// The lowest first, so that what comes is in order; a TPM that does otherwise fails the comparison with its own quote.
		for _, digest := range answer.PCRValues.Digests {
			if len(digest.Buffer) != sha256.Size {
				return nil, fmt.Errorf("a PCR of the SHA-256 bank has %d bytes", len(digest.Buffer))
			}
			out = append(out, digest.Buffer)
		}
		want &^= got
	}
	return out, nil
}

// ReadEventLog reads the firmware's event log, nil where the machine has none. It is read whole or not at all: a log that is cut does not account
// for the PCRs.
func ReadEventLog(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, verify.MaxEventLog+1)) // its size is not known before: the kernel says 0
	switch {
	case err != nil:
		return nil, fmt.Errorf("event log: %w", err)
	case len(data) > verify.MaxEventLog:
		return nil, fmt.Errorf("event log: %s has more than %d bytes", path, verify.MaxEventLog)
	}
	return data, nil
}
