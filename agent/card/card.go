// Package card reads what a gateway left on its card: which gateway it was, the signed sealing records, and the batches that were not
// delivered. It reads files alone, needs no TPM and no key, writes nothing, and learns nothing of what is sealed.
package card

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"wardlink/buffer"
	"wardlink/enroll"
	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// Card is what was found below a directory.
type Card struct {
	State    string              // the gateway's state directory; "" when only the buffer is there
	Buffer   string              // the buffer's directory
	Gateway  spiffe.ID           // whose certificate is there; its Name is "" when none is, or none can be read
	Sealings map[[16]byte][]byte // signed sealing records by sealing id
	Problems []string            // for people: what could not be read, and what that costs
}

// ErrNone: there is no gateway's buffer.
var ErrNone = errors.New("no gateway's buffer is here")

// places are where a state directory is below the root of a card, or of what is mounted of it; a package's, and those of systemd.
var places = []string{".", "var/lib/wardlink-agent", "lib/wardlink-agent", "wardlink-agent", "var/lib/private/wardlink-agent"}

// Open looks for a gateway's state directory in dir, which may be that directory, its buffer, or the root of the card's file system.
func Open(dir string) (*Card, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("card: %w", err)
	}
	for _, place := range places {
		state := filepath.Join(dir, place)
		if isBuffer(filepath.Join(state, "buffer")) {
			return read(state, filepath.Join(state, "buffer"))
		}
	}
	if !isBuffer(dir) {
		return nil, fmt.Errorf("card %s: %w: expected a gateway's state directory (with buffer/format in it), its buffer, or the root of its card (with var/lib/wardlink-agent)", dir, ErrNone)
	}
	at, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("card: %w", err)
	}
	state := filepath.Dir(at)
	for _, mark := range []string{SealingsName + ".a", SealingsName + ".b", "identity"} {
		if _, err := os.Lstat(filepath.Join(state, mark)); err == nil {
			return read(state, at)
		}
	}
	return read("", at)
}

func isBuffer(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "format"))
	return err == nil
}

func read(state, buf string) (*Card, error) {
	c := &Card{State: state, Buffer: buf, Sealings: map[[16]byte][]byte{}}
	if state == "" {
		c.Problems = append(c.Problems, "the gateway's state directory is not here, only its buffer: the signatures of its sealing records are missing")
		return c, nil
	}
	chain, err := chainOf(filepath.Join(state, "identity"))
	if err == nil {
		c.Gateway, err = spiffe.FromCertificate(chain[0])
	}
	if err == nil && c.Gateway.Kind != spiffe.Gateway {
		err = fmt.Errorf("certificate of %s: expected a gateway's", c.Gateway)
		c.Gateway = spiffe.ID{}
	}
	if err != nil {
		c.Problems = append(c.Problems, fmt.Sprintf("which gateway it is cannot be read: %v", err))
	}
	return c, c.readSealings()
}

func chainOf(identity string) ([]*x509.Certificate, error) {
	entries, err := os.ReadDir(identity)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		if err := durable.Regular(filepath.Join(identity, e.Name()), math.MaxInt64); err != nil { // Chain bounds what it reads
			return nil, err
		}
	}
	return enroll.Chain(identity)
}

// readSealings reads the signatures. A pair that is damaged costs what the server does not know of it.
func (c *Card) readSealings() error {
	path := filepath.Join(c.State, SealingsName)
	err := errors.Join(durable.Regular(path+".a", math.MaxInt64), durable.Regular(path+".b", math.MaxInt64)) // OpenAB bounds what it reads
	var data []byte
	if err == nil {
		_, data, err = durable.OpenAB(path, MaxSealingsFile)
	}
	if errors.Is(err, durable.ErrNewer) {
		return fmt.Errorf("card: %w", err)
	}
	var all []Sealing
	if err == nil && data != nil {
		all, err = ParseSealings(data)
	}
	switch {
	case err != nil:
		c.Problems = append(c.Problems, fmt.Sprintf("the signatures of the sealing records cannot be read: %v", err))
	case data == nil:
		c.Problems = append(c.Problems, fmt.Sprintf("no signatures of sealing records are here (%s): the gateway was never enrolled, or the files are gone", path))
	}
	for _, s := range all {
		if signed, err := seal.ParseSigned(s.Signed); err == nil {
			if record, err := signed.Unverified(); err == nil {
				c.Sealings[record.ID] = s.Signed
			}
		}
	}
	return nil
}

// Salvage gives out the batches that were not delivered, or, with all, every one that is there, until stop gives an error: see buffer.Salvage.
func (c *Card) Salvage(all bool, stop func() error, each func(buffer.Batch) error) ([]buffer.Salvaged, []buffer.Finding, error) {
	return buffer.Salvage(buffer.SalvageConfig{Dir: c.Buffer, Recognise: recognise, Mark: seal.Mark(), MaxFrame: telemetry.MaxFrame, All: all, Stop: stop}, each)
}

func recognise(data []byte) (buffer.Batch, bool) {
	frame, h, ok := seal.Cut(data)
	if !ok {
		return buffer.Batch{}, false
	}
	return buffer.Batch{ID: buffer.ID{Epoch: h.Epoch, Lane: uint8(h.Lane), Number: h.Number}, Sealing: h.Sealing, Frame: frame}, true
}

// Size is how many bytes the buffer's files have, for a measure of progress.
func (c *Card) Size() (n int64) {
	entries, err := os.ReadDir(c.Buffer)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		var info fs.FileInfo
		if info, err = e.Info(); err == nil {
			n += info.Size()
		}
	}
	return n
}
