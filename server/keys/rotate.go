package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"wardlink/internal/durable"
	"wardlink/server/ca"
)

// A rotation of the issuing CA has two steps, so that neither the operator who holds the passphrase nor a server that happens to run
// has to wait for the other. The first writes the next pair beside the present one:
//
//	keys/ca/issuing.next.key, public/issuing.next.crt
//
// in this order, each durably: where the certificate is, its key is. The second (AdoptIssuing, of the server alone) keeps the present
// certificate as public/issuing.former.crt and renames the key, which destroys the old one, and then the certificate. A kill between
// the two renames leaves a key that is not issuing.crt's but issuing.next.crt's: Open reads them as the pair that they are, and the
// next AdoptIssuing ends what was begun.
const (
	nextIssuingKeyFile = "keys/ca/issuing.next.key"
	nextIssuingFile    = "public/issuing.next.crt"
	formerIssuingFile  = "public/issuing.former.crt"
	issuingLockFile    = "keys/ca/lock" // of AdoptIssuing

	attestationLockFile = "keys/ca/attestation.lock" // shared by who uses the attestation CA of this directory, exclusive for who renews it
)

// ErrPrepared: a next issuing CA is there already and no server has taken it up.
var ErrPrepared = errors.New("the next issuing CA is prepared already; a running server takes it up within a minute, else the next 'wardlink-server run' does")

// NextIssuing is an issuing CA that the root has signed and nobody uses yet.
type NextIssuing struct {
	Certificate *x509.Certificate
	dir         string
	key         *ecdsa.PrivateKey
}

// MakeIssuing has the root sign the next issuing CA, without writing anything. The root's key comes out of the recovery file, which
// the passphrase opens; nothing keeps it beyond this call.
func MakeIssuing(dir, trustDomain, passphrase string, now time.Time) (*NextIssuing, error) {
	if _, err := os.Stat(filepath.Join(dir, nextIssuingFile)); err == nil {
		return nil, ErrPrepared
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r := reader{dir: dir}
	recovery := r.read(RecoveryFile)
	if r.err != nil {
		return nil, r.err
	}
	recovered, err := OpenRecovery(recovery, passphrase)
	if err != nil {
		return nil, err
	}
	defer recovered.Wipe()
	root, rootKey, err := recovered.root(dir)
	if err != nil {
		return nil, err
	}
	cert, key, err := ca.NewIssuing(trustDomain, root, rootKey, now)
	if err != nil {
		return nil, err
	}
	return &NextIssuing{Certificate: cert, dir: dir, key: key}, nil
}

// Store puts the pair beside the present one, durably. From then on a server takes it up. Made by root, the files are given to whom the
// present key belongs to, for the server runs as that user.
func (n *NextIssuing) Store() error {
	w := writer{dir: n.dir}
	w.key(nextIssuingKeyFile, n.key)
	if w.err == nil {
		w.err = giveAway(filepath.Join(n.dir, nextIssuingKeyFile), filepath.Join(n.dir, issuingKeyFile))
	}
	w.certificate(nextIssuingFile, n.Certificate)
	return w.err
}

// giveAway gives a file to the owner of another; only root can, and only root needs to.
func giveAway(path, like string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return os.Chown(path, int(owner.Uid), int(owner.Gid))
}

// Prepared gives the issuing CA that waits beside the present one, nil where there is none.
func Prepared(dir string) (*x509.Certificate, error) { return optional(dir, nextIssuingFile) }

// FormerIssuing gives the issuing CA before the present one, nil where there was none. Its key is gone; what it issued lives on.
func FormerIssuing(dir string) (*x509.Certificate, error) { return optional(dir, formerIssuingFile) }

func optional(dir, name string) (*x509.Certificate, error) {
	if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	r := reader{dir: dir}
	return r.certificate(name), r.err
}

// AdoptIssuing makes the prepared issuing CA the present one and destroys the old key, and gives the new pair; nil where none is
// prepared, or another process is at it. try is asked before anything is changed; its error leaves all as it was. Only processes with the
// service ca may call it. A kill at any instant leaves what Open reads and AdoptIssuing ends.
func AdoptIssuing(dir string, root *x509.Certificate, try func(*x509.Certificate, crypto.Signer) error) (*x509.Certificate, crypto.Signer, error) {
	next, err := Prepared(dir)
	if err != nil || next == nil {
		return nil, nil, err
	}
	if lock, err := durable.Lock(filepath.Join(dir, issuingLockFile), syscall.LOCK_EX); errors.Is(err, durable.ErrLocked) {
		return nil, nil, nil // another process is at it, and this one finds what it makes of it
	} else if err != nil {
		return nil, nil, err
	} else {
		defer func() { _ = lock.Close() }()
	}
	if next, err = Prepared(dir); err != nil || next == nil {
		return nil, nil, err
	}
	if err := next.CheckSignatureFrom(root); err != nil {
		return nil, nil, fmt.Errorf("%s is not this root's: %w; remove it and run 'wardlink-server rotate issuing' again", filepath.Join(dir, nextIssuingFile), err)
	}
	r := reader{dir: dir}
	present, key := r.certificate(issuingFile), r.signer(issuingKeyFile)
	if r.err != nil {
		return nil, nil, r.err
	}
	begun := belongs(next, key)
	if !begun {
		if key = r.signer(nextIssuingKeyFile); r.err != nil {
			return nil, nil, r.err
		}
		if !belongs(next, key) {
			return nil, nil, fmt.Errorf("%s does not belong to %s; remove both and run 'wardlink-server rotate issuing' again",
				filepath.Join(dir, nextIssuingKeyFile), filepath.Join(dir, nextIssuingFile))
		}
	}
	if err := try(next, key); err != nil {
		return nil, nil, fmt.Errorf("next issuing CA: %w", err)
	}
	if !begun {
		w := writer{dir: dir}
		w.certificate(formerIssuingFile, present)
		if w.err != nil {
			return nil, nil, w.err
		}
		if err := move(dir, nextIssuingKeyFile, issuingKeyFile); err != nil {
			return nil, nil, err
		}
	}
	if err := move(dir, nextIssuingFile, issuingFile); err != nil {
		return nil, nil, err
	}
	return next, key, nil
}

func move(dir, from, to string) error {
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(filepath.Join(dir, to)))
}

func belongs(cert *x509.Certificate, key crypto.Signer) bool {
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	return ok && key != nil && public.Equal(key.Public())
}

// issuingPair reads the present issuing CA. A server may be in the middle of AdoptIssuing: then the key is the next certificate's
// already, and if that ended between our two reads, a second look finds them together.
func issuingPair(dir string) (*x509.Certificate, crypto.Signer, error) {
	for range 3 {
		r := reader{dir: dir}
		cert, key := r.certificate(issuingFile), r.signer(issuingKeyFile)
		if r.err != nil {
			return nil, nil, r.err
		}
		if belongs(cert, key) {
			return cert, key, nil
		}
		if next, err := Prepared(dir); err == nil && next != nil && belongs(next, key) {
			return next, key, nil
		}
	}
	return nil, nil, notAPair(dir, issuingKeyFile)
}

func notAPair(dir, file string) error {
	return fmt.Errorf("%s does not belong to its certificate in public/; restore both from one backup", filepath.Join(dir, file))
}

// heldPatience is how long HoldAttestation waits for another process that renews, which takes milliseconds.
const heldPatience = 10 * time.Second

// HoldAttestation keeps every other process from renewing the attestation CA of this directory until held is closed or this process ends. What
// Open reads meanwhile is what all who hold it have: two with different ones would each refuse the AK certificates of the other, and no gateway
// could enrol. Before, it renews the CA when that is due and nobody else holds it. due says that it is still due: others go on with the present
// one, and it is renewed at the first start while none of them runs. Only a server that is about to read its keys may call it.
func HoldAttestation(dir, trustDomain string, now time.Time) (held io.Closer, renewed, due bool, err error) {
	path := filepath.Join(dir, attestationLockFile)
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		alone, err := durable.Lock(path, syscall.LOCK_EX)
		if err == nil {
			did, err := renewAttestation(dir, trustDomain, now)
			if err = errors.Join(err, alone.Close()); err != nil {
				return nil, renewed, false, err
			}
			renewed = renewed || did
		} else if !errors.Is(err, durable.ErrLocked) {
			return nil, renewed, false, err
		}
		// Between the two locks another process may begin, and finds nothing due.
		shared, err := durable.Lock(path, syscall.LOCK_SH)
		if err == nil {
			cert, _, err := attestationPair(dir)
			if err != nil {
				return nil, renewed, false, errors.Join(err, shared.Close())
			}
			return shared, renewed, attestationDue(cert, now), nil
		}
		if !errors.Is(err, durable.ErrLocked) {
			return nil, renewed, false, err
		}
		if time.Since(began) > heldPatience {
			return nil, renewed, false, fmt.Errorf("renew the attestation CA: %w for %s; end the process that holds it and start again", err, heldPatience)
		}
	}
}

func attestationDue(cert *x509.Certificate, now time.Time) bool {
	return now.Before(cert.NotBefore) || !now.Before(cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore)/2))
}

// renewAttestation makes a new attestation CA once the present one is past half of its life, and says whether it did. Nobody but this
// server trusts it, so nobody has to be asked: AK certificates of the former one are accepted no more, and a gateway whose enrolment
// that interrupts begins again by itself. The caller holds the lock alone. The pair is written as a rotation's is, under one name: a kill
// leaves the old pair, or a file that the next call overwrites.
func renewAttestation(dir, trustDomain string, now time.Time) (bool, error) {
	cert, _, err := attestationPair(dir)
	if err != nil || !attestationDue(cert, now) {
		return false, err
	}
	next, key, err := ca.NewAttestation(trustDomain, now)
	if err != nil {
		return false, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return false, err
	}
	defer clear(der)
	// One file holds both, so that one rename renews both; Open takes the certificate of the key's file where there is one.
	both := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: next.Raw})...)
	defer clear(both)
	w := writer{dir: dir}
	w.file(attestationKeyFile, both, 0o600)
	w.certificate(attestationFile, next)
	return true, w.err
}

// attestationPair reads the attestation CA. A key's file that renewAttestation wrote holds the certificate too, and that one counts: the
// copy in public/ may be missing after a kill.
func attestationPair(dir string) (*x509.Certificate, crypto.Signer, error) {
	r := reader{dir: dir}
	key := r.signer(attestationKeyFile)
	cert := r.second(attestationKeyFile)
	if cert == nil {
		cert = r.certificate(attestationFile)
	}
	if r.err != nil {
		return nil, nil, r.err
	}
	if !belongs(cert, key) {
		return nil, nil, notAPair(dir, attestationKeyFile)
	}
	return cert, key, nil
}

// second reads a certificate that stands after a file's key, nil where there is none.
func (r *reader) second(name string) *x509.Certificate {
	data := r.read(name)
	if r.err != nil {
		return nil
	}
	_, rest := pem.Decode(data)
	block, _ := pem.Decode(rest)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		r.err = fmt.Errorf("%s: %w", filepath.Join(r.dir, name), err)
	}
	return cert
}
