package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"wardlink/enroll/tpm"
	"wardlink/internal/spiffe"
)

// openKeys opens the key files. They are made only on a gateway that never held a certificate: lost keys on an enrolled one are an
// error, because a silent fresh start would hide a swapped disk. Two cases are told apart from that, since the TPM itself explains them:
// a TPM that was cleared, whose EK still says who it is; and a board that was replaced, which has its keys in a folder of its own beside
// the former board's and must turn out to be the same gateway.
func (e *Enroller) openKeys(ctx context.Context) (*tpm.Keys, error) {
	if e.keys != nil {
		return e.keys, nil
	}
	keys, dir, err := openBoard(ctx, e.cfg.TPM, e.cfg.Dir)
	e.former = ""
	if dir != e.cfg.Dir {
		var unknown error
		if e.former, unknown = e.formerGateway(); unknown != nil && !errors.Is(unknown, ErrNone) {
			return nil, fmt.Errorf("open keys in %s: %w (%w)", e.cfg.Dir, tpm.ErrForeign, unknown)
		}
		e.cfg.Log.Warn("the disk was with another board; this board has keys of its own", "gateway", e.former, "dir", dir)
	}
	switch {
	case errors.Is(err, tpm.ErrCleared):
		e.cfg.Log.Warn("the TPM was cleared: new keys are made, and what waits is signed again with them", "dir", dir)
		if err := tpm.RetireKeys(dir); err != nil {
			return nil, err
		}
		keys, err = tpm.CreateKeys(ctx, e.cfg.TPM, dir)
	case errors.Is(err, tpm.ErrMissing):
		if dir == e.cfg.Dir {
			if err := e.mayCreate(err); err != nil {
				return nil, err
			}
		}
		e.cfg.Log.Info("make the gateway's keys", "dir", dir)
		keys, err = tpm.CreateKeys(ctx, e.cfg.TPM, dir)
	}
	if err != nil {
		return nil, err
	}
	e.keys = keys
	return keys, nil
}

// mayCreate says why keys that are missing must not be made.
func (e *Enroller) mayCreate(missing error) error {
	enrolled, err := e.enrolledBefore()
	if err != nil || !enrolled {
		return err
	}
	retired, err := tpm.Retired(e.cfg.Dir)
	if err != nil || retired {
		return err
	}
	return fmt.Errorf("%w although this gateway was enrolled; restore the key files, or remove %s to enrol anew", missing, e.cfg.Dir)
}

// doubt lets go of keys that the TPM does not load any more: it was cleared under a running agent. The next attempt opens them anew.
func (e *Enroller) doubt(err error) error {
	if errors.Is(err, tpm.ErrForeign) {
		e.keys = nil
	}
	return err
}

// formerGateway is whose certificate the disk holds; ErrNone when it was never a gateway's.
func (e *Enroller) formerGateway() (string, error) {
	chain, err := e.stored()
	if err != nil {
		return "", err
	}
	if len(chain) == 0 {
		return "", errors.New("its certificate cannot be read; remove " + filepath.Join(e.cfg.Dir, chainFile) + " and the key files beside it to enrol anew")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return "", err
	}
	id, err := spiffe.FromCertificate(leaf)
	if err != nil {
		return "", err
	}
	return id.Name, nil
}

// enrolledBefore tells whether this gateway has ever held a certificate.
func (e *Enroller) enrolledBefore() (bool, error) {
	_, err := os.Stat(filepath.Join(e.cfg.Dir, chainFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// DeviceKey opens the device key of the board that this TPM is, in a state directory; it makes none. tpm.ErrMissing;
// tpm.ErrForeign; both of a board that has none yet, in a directory that holds another's.
func DeviceKey(ctx context.Context, device *tpm.TPM, dir string) (*tpm.Signer, error) {
	keys, at, err := openBoard(ctx, device, dir)
	if at != dir && errors.Is(err, tpm.ErrMissing) {
		err = fmt.Errorf("open keys in %s: %w; of this one: %w", dir, tpm.ErrForeign, err)
	}
	if err != nil {
		return nil, err
	}
	return keys.Device(), nil
}

// openBoard opens the keys of the board that this TPM is, and says where they are or are to be made: in dir, or beside those of another
// board whose disk it was. tpm.ErrMissing, and of tpm.ErrForeign only tpm.ErrCleared.
func openBoard(ctx context.Context, device *tpm.TPM, dir string) (keys *tpm.Keys, at string, err error) {
	keys, err = tpm.OpenKeys(ctx, device, dir)
	if !errors.Is(err, tpm.ErrForeign) || errors.Is(err, tpm.ErrCleared) {
		return keys, dir, err
	}
	ek, err := device.EK(ctx)
	if err != nil {
		return nil, dir, err
	}
	at = boardDir(dir, ek.Hash)
	keys, err = tpm.OpenKeys(ctx, device, at)
	return keys, at, err
}

// boardDir holds the keys of a board that came to another board's disk.
func boardDir(dir string, ek [32]byte) string { return filepath.Join(dir, "board-"+Fingerprint(ek)) }
