package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"wardlink/internal/durable"
	"wardlink/telemetry/seal"
)

// Wipe overwrites the keys.
func (r Recovered) Wipe() {
	r.Root.Wipe()
	r.Records.Wipe()
	r.Config.Wipe()
}

// Prove says whether the keys are those of the server whose directory dir is: the records key opens the canary there, the config key is the one
// that it names, and the root key is that of the root certificate. The directory needs no keys.
func (r Recovered) Prove(dir string) error {
	records, err := seal.ParsePrivateKey(r.Records)
	if err != nil {
		return fmt.Errorf("recovery file: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, CanaryFile))
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	if err := openCanary(text, records, r.Config); err != nil {
		return err
	}
	_, _, err = r.root(dir)
	return err
}

// root is the root of dir with its key.
func (r Recovered) root(dir string) (*x509.Certificate, crypto.Signer, error) {
	rd := reader{dir: dir}
	cert := rd.certificate(rootFile)
	if rd.err != nil {
		return nil, nil, rd.err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(r.Root)
	if err != nil {
		return nil, nil, fmt.Errorf("recovery file: root key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !belongs(cert, key) {
		return nil, nil, fmt.Errorf("recovery file: its root key is not that of %s; is it another server's?", filepath.Join(dir, rootFile))
	}
	return cert, key, nil
}

// Restore makes the keys of a directory that holds a former server's public files and no keys: what the recovery file kept, and anew what it
// did not: issuing CA (signed by the root, so that every certificate of before stays valid), attestation CA and the key of the log
// with that origin. recovery is the file itself. Certificates of the former CAs stay in public/ under former names.
func Restore(dir, trustDomain string, r Recovered, recovery []byte, origin string, now time.Time) error {
	if _, err := os.Stat(filepath.Join(dir, "keys")); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds keys already", dir)
	}
	if err := r.Prove(dir); err != nil {
		return err
	}
	root, rootKey, err := r.root(dir)
	if err != nil {
		return err
	}
	m, err := mint(trustDomain, root, rootKey, origin, now)
	if err != nil {
		return err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(r.Config)
	config, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return errors.New("recovery file: its config key is no signing key")
	}
	for from, to := range map[string]string{issuingFile: formerIssuingFile, attestationFile: formerAttestationFile} {
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("key: %w", err)
		}
	}
	// The key of an issuing CA that was prepared is gone with the machine.
	if err := os.Remove(filepath.Join(dir, nextIssuingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("key: %w", err)
	}
	w := writer{dir: dir}
	w.minted(m)
	w.recovered(config, r.Records, recovery)
	return w.err
}

// formerAttestationFile is the attestation CA of before a restore.
const formerAttestationFile = "public/attestation.former.crt"

// confirmedName is the file that says that a person has opened the recovery file.
const confirmedName = "recovery-confirmed.json"

// Confirmation says when which recovery file was proven to open.
type Confirmation struct {
	Time   time.Time `json:"confirmed"`
	SHA256 string    `json:"recovery_sha256"`
}

// Confirm notes durably that a person has opened the recovery file as it is now. The caller has proven it (CheckRecovery, or a restore).
func Confirm(dir string, now time.Time) (Confirmation, error) {
	data, err := os.ReadFile(filepath.Join(dir, RecoveryFile))
	if err != nil {
		return Confirmation{}, fmt.Errorf("recovery file: %w", err)
	}
	sum := sha256.Sum256(data)
	c := Confirmation{Time: now.UTC().Truncate(time.Second), SHA256: hex.EncodeToString(sum[:])}
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return Confirmation{}, err
	}
	return c, durable.WriteFile(filepath.Join(dir, confirmedName), append(text, '\n'), 0o600)
}

// Confirmed says whether somebody has proven that the recovery file of dir opens. A recovery file that was taken away, to be kept apart, counts as
// confirmed if it was before it went; one that is another than was confirmed does not.
func Confirmed(dir string) (c Confirmation, ok bool) {
	text, err := os.ReadFile(filepath.Join(dir, confirmedName))
	if err != nil || json.Unmarshal(bytes.TrimSpace(text), &c) != nil {
		return Confirmation{}, false
	}
	data, err := os.ReadFile(filepath.Join(dir, RecoveryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return c, true
	}
	sum := sha256.Sum256(data)
	return c, err == nil && c.SHA256 == hex.EncodeToString(sum[:])
}
