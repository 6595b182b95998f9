// Package keys makes and reads the keys of a server's directory. Each service reads only what it needs:
//
//	keys/ca/issuing.key, attestation.key   the certificate authority's
//	keys/records/records.key               what opens batches
//	keys/log/log.key                       what signs checkpoints
//	keys/api/config.key                    what signs configuration
//	public/                                certificates and public keys, for anyone
//	recovery.json, canary.json             the wrapped root, records and config keys, and the proof that they open
//
// The root key is only in the recovery file. Ingest has no key here but that of its TLS certificate.
//
// The pseudonym key, under which every stored subject and every FHIR patient id is made, is no file: it is HKDF-SHA256 of the records
// key with the label "wardlink/pseudonym/1", so whoever recovers the records key has it too and finds every patient again. The
// config key is in the recovery file because each kit in the field trusts that one key: without it no gateway could be told anything
// any more. The keys of the CA and of the log are not in it: the root signs new ones, and a restored server begins a new log.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"wardlink/audit"
	"wardlink/internal/durable"
	"wardlink/internal/secret"
	"wardlink/server/ca"
	"wardlink/server/translog"
	"wardlink/telemetry/seal"
)

// The files, relative to the server's directory.
const (
	issuingKeyFile     = "keys/ca/issuing.key"
	attestationKeyFile = "keys/ca/attestation.key"
	recordsKeyFile     = "keys/records/records.key"
	LogKeyFile         = "keys/log/log.key"
	configKeyFile      = "keys/api/config.key"
	rootFile           = "public/root.crt"
	issuingFile        = "public/issuing.crt"
	attestationFile    = "public/attestation.crt"
	LogPublicFile      = "public/log.pub"
	RecoveryFile       = "recovery.json"
	CanaryFile         = "canary.json"
)

// Keys are a server's keys, all services' together.
type Keys struct {
	Root, Issuing, Attestation *x509.Certificate
	IssuingKey, AttestationKey crypto.Signer
	Records                    seal.PrivateKey
	Pseudonym                  secret.Bytes // HMAC-SHA-256 key of patients' pseudonyms, derived from Records
	Config                     ed25519.PrivateKey
	LogSigner                  string // note signer key
	LogVerifier                string // note verifier key
}

// Create makes every key, in a directory that has none. On an error what was made is left for a person to look at; Create never
// overwrites a key.
func Create(dir, trustDomain, passphrase string, now time.Time) error {
	if _, err := os.Stat(filepath.Join(dir, "keys")); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds keys already; init makes a new server in an empty directory", dir)
	}
	root, rootKey, err := ca.NewRoot(trustDomain, now)
	if err != nil {
		return err
	}
	m, err := mint(trustDomain, root, rootKey, audit.Origin(trustDomain, 1), now)
	if err != nil {
		return err
	}
	records, err := seal.GenerateKey()
	if err != nil {
		return err
	}
	configPublic, config, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	rootDER, err := x509.MarshalPKCS8PrivateKey(rootKey)
	if err != nil {
		return err
	}
	defer clear(rootDER)
	configDER, err := x509.MarshalPKCS8PrivateKey(config)
	if err != nil {
		return err
	}
	defer clear(configDER)
	recovery, err := WrapRecovery(trustDomain, passphrase, Recovered{Root: rootDER, Records: records.Bytes(), Config: configDER})
	if err != nil {
		return err
	}
	canaryText, err := newCanary(records.Public(), configPublic, now)
	if err != nil {
		return err
	}
	w := writer{dir: dir}
	w.minted(m)
	w.recovered(config, records.Bytes(), recovery)
	w.certificate(rootFile, root)
	w.file(CanaryFile, canaryText, 0o600)
	return w.err
}

// minted are the keys that the recovery file does not keep: a server that is restored gets new ones.
type minted struct {
	issuing, attestation       *x509.Certificate
	issuingKey, attestationKey *ecdsa.PrivateKey
	logSigner, logVerifier     string
}

// mint makes them, without writing anything.
func mint(trustDomain string, root *x509.Certificate, rootKey crypto.Signer, origin string, now time.Time) (m minted, err error) {
	if m.issuing, m.issuingKey, err = ca.NewIssuing(trustDomain, root, rootKey, now); err != nil {
		return m, err
	}
	if m.attestation, m.attestationKey, err = ca.NewAttestation(trustDomain, now); err != nil {
		return m, err
	}
	m.logSigner, m.logVerifier, err = translog.NewKey(origin)
	return m, err
}

func (w *writer) minted(m minted) {
	w.key(issuingKeyFile, m.issuingKey)
	w.key(attestationKeyFile, m.attestationKey)
	w.file(LogKeyFile, []byte(m.logSigner+"\n"), 0o600)
	w.file(LogPublicFile, []byte(m.logVerifier+"\n"), 0o644)
	w.certificate(issuingFile, m.issuing)
	w.certificate(attestationFile, m.attestation)
}

// recovered writes the recovery file and those of its keys that a server works with.
func (w *writer) recovered(config crypto.Signer, records, recovery []byte) {
	w.key(configKeyFile, config)
	w.private(recordsKeyFile, "WARDLINK RECORDS KEY", records)
	w.file(RecoveryFile, recovery, 0o600)
}

// Open reads every key of a directory that Create made.
func Open(dir string) (*Keys, error) { return OpenOf(dir, "ca", "records", "log", "api") }

// OpenOf reads what is public, and the keys of the services "ca", "records", "log" and "api" as far as they are named; "api" reads with the
// records key, too. All other keys stay zero, and their files need not be there.
func OpenOf(dir string, services ...string) (*Keys, error) {
	r := reader{dir: dir}
	k := &Keys{Root: r.certificate(rootFile), LogVerifier: r.line(LogPublicFile)}
	has := func(name string) bool { return slices.Contains(services, name) }
	if has("log") {
		k.LogSigner = r.line(LogKeyFile)
	}
	var config crypto.Signer
	if has("api") {
		config = r.signer(configKeyFile)
	}
	var raw []byte
	if has("records") || has("api") {
		raw = r.private(recordsKeyFile, "WARDLINK RECORDS KEY")
	}
	if r.err != nil {
		return nil, r.err
	}
	var ok bool
	if k.Config, ok = config.(ed25519.PrivateKey); !ok && has("api") {
		return nil, fmt.Errorf("%s: not an Ed25519 key", filepath.Join(dir, configKeyFile))
	}
	var err error
	if raw != nil {
		if k.Records, err = seal.ParsePrivateKey(raw); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, recordsKeyFile), err)
		}
		if k.Pseudonym, err = pseudonymKey(k.Records); err != nil {
			return nil, err
		}
	}
	if !has("ca") {
		return k, nil
	}
	if k.Issuing, k.IssuingKey, err = issuingPair(dir); err != nil {
		return nil, err
	}
	k.Attestation, k.AttestationKey, err = attestationPair(dir)
	return k, err
}

// CAFiles are the files of the service "ca" in a directory, by name: its two keys with their certificates, and what is public. A further process
// with the service has a directory that holds these and no other key. They are read at one moment, so that each key is its certificate's.
func CAFiles(dir string) (map[string][]byte, error) {
	k, err := OpenOf(dir, "ca")
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{LogPublicFile: []byte(k.LogVerifier + "\n")}
	for name, key := range map[string]crypto.Signer{issuingKeyFile: k.IssuingKey, attestationKeyFile: k.AttestationKey} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		clear(der)
	}
	for name, c := range map[string]*x509.Certificate{rootFile: k.Root, issuingFile: k.Issuing, attestationFile: k.Attestation} {
		out[name] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return out, nil
}

// WritePrivate stores a file that is its owner's alone. Made by root, it is given to whom the root certificate's file belongs to, for the server runs as
// that user.
func WritePrivate(dir, name string, data []byte) error {
	w := writer{dir: dir}
	if w.file(name, data, 0o600); w.err != nil {
		return w.err
	}
	return giveAway(filepath.Join(dir, name), filepath.Join(dir, rootFile))
}

// Issuing reads the present issuing CA and its key.
func Issuing(dir string) (*x509.Certificate, crypto.Signer, error) { return issuingPair(dir) }

// pseudonymLabel separates the pseudonym key from whatever else may be derived from the records key. It is part of the format: with
// another label every patient would get another id.
const pseudonymLabel = "wardlink/pseudonym/1"

func pseudonymKey(records seal.PrivateKey) (secret.Bytes, error) {
	raw := records.Bytes()
	defer raw.Wipe()
	key, err := hkdf.Key(sha256.New, raw, nil, pseudonymLabel, 32)
	if err != nil {
		return nil, fmt.Errorf("pseudonym key: %w", err)
	}
	return key, nil
}

// backupLabel separates the seed of the backup key from whatever else is derived from the records key. It is part of the format.
const backupLabel = "wardlink/backup-key/1"

// BackupSeed is the seed of the key pair that backups are encrypted to: 32 bytes, derived, so that whoever holds the recovery file
// can open every backup, and nothing more has to be kept.
func BackupSeed(records seal.PrivateKey) (secret.Bytes, error) {
	raw := records.Bytes()
	defer raw.Wipe()
	key, err := hkdf.Key(sha256.New, raw, nil, backupLabel, 32)
	if err != nil {
		return nil, fmt.Errorf("backup key: %w", err)
	}
	return key, nil
}

// Belong says whether the keys are those of a trust domain: the root names its own.
func (k *Keys) Belong(trustDomain string) error {
	if len(k.Root.URIs) != 1 || k.Root.URIs[0].Host != trustDomain {
		return fmt.Errorf("trust_domain is %q, but this server's root is of %q; a trust domain cannot be changed: put it back, or make a new server with init",
			trustDomain, k.Root.Subject.Organization)
	}
	return nil
}

// CheckRecovery proves that the directory's recovery file opens with the passphrase, that the records key in it opens what gateways
// seal and that the config key in it is the one that this server's kits trust.
func CheckRecovery(dir, passphrase string) error {
	data, err := os.ReadFile(filepath.Join(dir, RecoveryFile))
	if err != nil {
		return fmt.Errorf("recovery file: %w", err)
	}
	keys, err := OpenRecovery(data, passphrase)
	if err != nil {
		return err
	}
	defer keys.Wipe()
	return keys.Prove(dir)
}

// writer writes durable files and keeps the first error.
type writer struct {
	dir string
	err error
}

func (w *writer) file(name string, data []byte, perm fs.FileMode) {
	if w.err != nil {
		return
	}
	path := filepath.Join(w.dir, name)
	dirPerm := fs.FileMode(0o700)
	if perm&0o044 != 0 {
		dirPerm = 0o755
	}
	if w.err = os.MkdirAll(filepath.Dir(path), dirPerm); w.err == nil {
		w.err = durable.WriteFile(path, data, perm)
	}
}

func (w *writer) private(name, kind string, raw []byte) {
	w.file(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600)
}

func (w *writer) key(name string, key crypto.Signer) {
	if w.err != nil {
		return
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	w.private(name, "PRIVATE KEY", der)
}

func (w *writer) certificate(name string, c *x509.Certificate) {
	w.file(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o644)
}

// reader reads files and keeps the first error.
type reader struct {
	dir string
	err error
}

func (r *reader) read(name string) []byte {
	if r.err != nil {
		return nil
	}
	path := filepath.Join(r.dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		r.err = fmt.Errorf("key: %w; restore it from the key backup, or make a new server with 'wardlink-server init'", err)
	}
	return data
}

func (r *reader) line(name string) string {
	data := r.read(name)
	for i, b := range data {
		if b == '\n' {
			return string(data[:i])
		}
	}
	return string(data)
}

func (r *reader) private(name, kind string) []byte {
	data := r.read(name)
	if r.err != nil {
		return nil
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != kind {
		r.err = fmt.Errorf("%s: expected PEM of type %q", filepath.Join(r.dir, name), kind)
		return nil
	}
	return block.Bytes
}

func (r *reader) signer(name string) crypto.Signer {
	der := r.private(name, "PRIVATE KEY")
	if r.err != nil {
		return nil
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		r.err = fmt.Errorf("%s: %w", filepath.Join(r.dir, name), err)
		return nil
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		r.err = fmt.Errorf("%s: not a signing key", filepath.Join(r.dir, name))
	}
	return s
}

func (r *reader) certificate(name string) *x509.Certificate {
	der := r.private(name, "CERTIFICATE")
	if r.err != nil {
		return nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		r.err = fmt.Errorf("%s: %w", filepath.Join(r.dir, name), err)
	}
	return c
}
