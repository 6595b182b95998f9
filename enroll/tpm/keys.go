package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"

	"wardlink/internal/durable"
)

var (
	// ErrMissing: the state directory holds no keys. On a gateway that was enrolled before this is an error, never a fresh start.
	ErrMissing = errors.New("no keys in the state directory")
	// ErrExists: CreateKeys found keys.
	ErrExists = errors.New("the state directory already holds keys")
	// ErrForeign: the keys were made by another TPM, or by this one before it was cleared.
	ErrForeign = errors.New("the keys in the state directory do not belong to this TPM: it was replaced or cleared, or the disk comes from another gateway")
	// ErrCleared is the ErrForeign of keys that this very TPM made before it was cleared: the EK is the same, and they load no more.
	ErrCleared = fmt.Errorf("the TPM was cleared since it made its keys: %w", ErrForeign)
)

// Keys are a gateway's attestation key and device key.
type Keys struct {
	tpm        *TPM
	ak, device *blob
	signer     *Signer
}

// AK is what the attestation CA needs to judge the attestation key; the names are the wire protocol's.
type AK struct {
	Public            []byte // TPMT_PUBLIC
	CreateData        []byte // TPMS_CREATION_DATA
	CreateAttestation []byte // TPMS_ATTEST
	CreateSignature   []byte // TPMT_SIGNATURE by the AK itself
}

// Certification is the AK's word that the device key lives in the same TPM and cannot leave it.
type Certification struct {
	Info      []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE
	Public    []byte // TPMT_PUBLIC of the device key
}

// CreateKeys makes both keys and stores them in dir. The device key's file is written last and means that both are there: after a
// crash before it, CreateKeys starts over. ErrExists when dir holds keys.
func CreateKeys(ctx context.Context, t *TPM, dir string) (*Keys, error) {
	if _, err := readBlob(dir, deviceFile, purposeDevice); !errors.Is(err, ErrMissing) {
		if err == nil {
			err = ErrExists
		}
		return nil, fmt.Errorf("create keys in %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ak, device := &blob{purpose: purposeAK}, &blob{purpose: purposeDevice}
	if err := t.do(ctx, "create the AK", func(c *conn) error { return c.createKey(ak, akTemplate()) }); err != nil {
		return nil, err
	}
	if err := t.do(ctx, "create the device key", func(c *conn) error { return c.createKey(device, deviceTemplate()) }); err != nil {
		return nil, err
	}
	if err := writeBlob(dir, akFile, ak); err != nil {
		return nil, err
	}
	if err := writeBlob(dir, deviceFile, device); err != nil {
		return nil, err
	}
	// From here on a missing key file is a loss again, which no clearing explains.
	cleared := filepath.Join(dir, deviceFile+clearedSuffix)
	if err := os.Rename(cleared, filepath.Join(dir, deviceFile+".former")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return newKeys(t, ak, device)
}

// RetireKeys puts the keys of a TPM that was cleared aside, so that CreateKeys can make new ones: the device key's file first, which
// means that both are there. They are of no use to anybody, and are kept to show what happened.
func RetireKeys(dir string) error {
	for _, name := range []string{deviceFile, akFile} {
		path := filepath.Join(dir, name)
		if err := os.Rename(path, path+clearedSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return durable.SyncDir(dir)
}

// Retired tells whether RetireKeys was here and the new keys are not made yet.
func Retired(dir string) (bool, error) {
	for _, name := range []string{deviceFile, deviceFile + clearedSuffix} {
		_, err := os.Stat(filepath.Join(dir, name))
		if there := err == nil; there || !errors.Is(err, fs.ErrNotExist) {
			return there && name != deviceFile, err
		}
	}
	return false, nil
}

const clearedSuffix = ".cleared"

// OpenKeys reads both keys from dir and loads each once, so that a foreign TPM shows now. ErrMissing; ErrForeign, an ErrCleared among them.
func OpenKeys(ctx context.Context, t *TPM, dir string) (*Keys, error) {
	device, err := readBlob(dir, deviceFile, purposeDevice)
	if err != nil {
		return nil, fmt.Errorf("open keys in %s: %w", dir, err)
	}
	ak, err := readBlob(dir, akFile, purposeAK)
	if errors.Is(err, ErrMissing) { // the device key is written last, so this was not us
		err = fmt.Errorf("%s is gone but %s is there; restore it, or remove %s to enrol anew", akFile, deviceFile, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open keys in %s: %w", dir, err)
	}
	ek, err := t.EK(ctx)
	if err != nil {
		return nil, err
	}
	if ak.ek == device.ek && ak.ek != ek.Hash { // another of this TPM's EKs may have been the one when they were made
		if err := t.pin(ctx, ak.ek); err != nil {
			return nil, fmt.Errorf("open keys in %s: %w", dir, err)
		}
	} else if ak.ek != device.ek {
		return nil, fmt.Errorf("open keys in %s: %w", dir, ErrForeign)
	}
	for _, b := range []*blob{ak, device} {
		if err := t.do(ctx, "load a key", func(c *conn) error { return c.withKeys(func([]tpm2.NamedHandle) error { return nil }, b) }); err != nil {
			if errors.Is(err, ErrForeign) { // the EK is the same
				err = ErrCleared
			}
			return nil, fmt.Errorf("open keys in %s: %w", dir, err)
		}
	}
	return newKeys(t, ak, device)
}

func newKeys(t *TPM, ak, device *blob) (*Keys, error) {
	signer, err := newSigner(t, device)
	if err != nil {
		return nil, err
	}
	return &Keys{tpm: t, ak: ak, device: device, signer: signer}, nil
}

// AK returns the attestation key's public material.
func (k *Keys) AK() AK {
	return AK{Public: k.ak.public[2:], CreateData: k.ak.creation, CreateAttestation: k.ak.attest, CreateSignature: k.ak.sig}
}

// Device returns the device key.
func (k *Keys) Device() *Signer { return k.signer }

// Certify has the AK attest the device key over qualifying, a server's fresh challenge.
func (k *Keys) Certify(ctx context.Context, qualifying [32]byte) (Certification, error) {
	return value(ctx, k.tpm, "certify the device key", func(c *conn) (out Certification, err error) {
		err = c.withKeys(func(loaded []tpm2.NamedHandle) error {
			ek, h, release, err := c.loadEK()
			if err != nil {
				return err
			}
			defer release()
			answer, err := tpm2.Certify{
				ObjectHandle:   auth(loaded[1], session(ek, h)),
				SignHandle:     auth(loaded[0], session(ek, h, tpm2.AESEncryption(128, tpm2.EncryptInOut))),
				QualifyingData: tpm2.TPM2BData{Buffer: qualifying[:]},
				InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			}.Execute(c)
			if err != nil {
				return err
			}
			out = Certification{Info: answer.CertifyInfo.Bytes(), Signature: tpm2.Marshal(answer.Signature), Public: k.device.public[2:]}
			return nil
		}, k.ak, k.device)
		return out, err
	})
}

// ActivateCredential decrypts the attestation CA's secret, which proves that AK and EK live in one TPM. credential is a
// TPM2B_ID_OBJECT, secret a TPM2B_ENCRYPTED_SECRET, both with their sizes.
func (k *Keys) ActivateCredential(ctx context.Context, credential, secret []byte) ([]byte, error) {
	id, err := tpm2.Unmarshal[tpm2.TPM2BIDObject](credential)
	if err != nil {
		return nil, fmt.Errorf("credential of the attestation CA: %w", err)
	}
	enc, err := tpm2.Unmarshal[tpm2.TPM2BEncryptedSecret](secret)
	if err != nil {
		return nil, fmt.Errorf("secret of the attestation CA: %w", err)
	}
	return value(ctx, k.tpm, "activate a credential", func(c *conn) (out []byte, err error) {
		err = c.withKeys(func(loaded []tpm2.NamedHandle) error {
			ek, h, release, err := c.loadEK()
			if err != nil {
				return err
			}
			defer release()
			answer, err := tpm2.ActivateCredential{
				ActivateHandle: auth(loaded[0], session(ek, h, tpm2.AESEncryption(128, tpm2.EncryptInOut))),
				KeyHandle:      tpm2.AuthHandle{Handle: h, Name: ek.name, Auth: ek.auth(h)},
				CredentialBlob: *id,
				Secret:         *enc,
			}.Execute(c)
			if err != nil {
				return err
			}
			out = bytes.Clone(answer.CertInfo.Buffer)
			return nil
		}, k.ak)
		return out, err
	})
}
