// Package enroll is the enrolment protocol: how a gateway proves its TPM and receives its certificate, the kit that makes a
// fresh gateway one of ours, and the signed configuration that the hospital sends it. The gateway's half of the protocol is here;
// enroll/tpm drives the TPM, enroll/verify judges attestations.
package enroll

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/internal/spiffe"
	"wardlink/telemetry/seal"
)

// KitVersion is the format version that this code reads and writes.
const KitVersion = 1

// maxKit bounds a kit file: a few roots and one 1249-byte records key fit many times over.
const maxKit = 64 << 10

// Kit is the small public file that makes a fresh gateway one of ours. It holds no secret; whoever can replace it on a gateway
// decides whom that gateway trusts, so its Fingerprint is shown when it is made and when an agent starts.
type Kit struct {
	TrustDomain string
	Servers     []string            // host:port of the gateways' listener, tried in order
	Roots       []*x509.Certificate // whom to believe that it is the server
	RecordsKey  seal.PublicKey      // to whom telemetry is sealed
	ConfigKey   ed25519.PublicKey   // who signs configuration and time
	LogKey      string              // verifier key of the transparency log, note format
	Fingerprint [sha256.Size]byte   // of the file's bytes; set by ParseKit
}

// kitFile is the JSON form. encoding/json writes the fields in this order, so a kit's bytes depend on its contents alone.
type kitFile struct {
	Version     int      `json:"wardlink_kit"`
	TrustDomain string   `json:"trust_domain"`
	Servers     []string `json:"servers"`
	Roots       []string `json:"roots"`
	RecordsKey  string   `json:"records_key"`
	ConfigKey   string   `json:"config_key"`
	LogKey      string   `json:"log_key"`
}

// Marshal is the kit's file.
func (k Kit) Marshal() ([]byte, error) {
	f := kitFile{
		Version:     KitVersion,
		TrustDomain: k.TrustDomain,
		Servers:     k.Servers,
		RecordsKey:  base64.StdEncoding.EncodeToString(k.RecordsKey.Bytes()),
		ConfigKey:   base64.StdEncoding.EncodeToString(k.ConfigKey),
		LogKey:      k.LogKey,
	}
	for _, c := range k.Roots {
		f.Roots = append(f.Roots, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
	}
	out, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write kit: %w", err)
	}
	out = append(out, '\n')
	if _, err := ParseKit(out); err != nil {
		return nil, fmt.Errorf("write kit: %w", err)
	}
	return out, nil
}

// ParseKit reads a kit file. Unknown fields are errors: a kit that an older agent half understands would be trusted half.
func ParseKit(data []byte) (Kit, error) {
	if len(data) > maxKit {
		return Kit{}, fmt.Errorf("kit: %d bytes; a kit has at most %d", len(data), maxKit)
	}
	var f kitFile
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return Kit{}, fmt.Errorf("kit: not a kit file: %w; make one with 'wardlink provision kit'", err)
	}
	if dec.More() {
		return Kit{}, errors.New("kit: data after the end of the document")
	}
	if f.Version != KitVersion {
		return Kit{}, fmt.Errorf("kit: version %d; this program reads version %d", f.Version, KitVersion)
	}
	k := Kit{TrustDomain: f.TrustDomain, Servers: f.Servers, LogKey: f.LogKey, Fingerprint: sha256.Sum256(data)}
	if err := spiffe.ValidTrustDomain(f.TrustDomain); err != nil {
		return Kit{}, fmt.Errorf("kit: trust_domain: %w", err)
	}
	if err := checkServers(f.Servers); err != nil {
		return Kit{}, fmt.Errorf("kit: %w", err)
	}
	var err error
	if k.Roots, err = parseRoots(f.Roots); err != nil {
		return Kit{}, err
	}
	if k.RecordsKey, err = parseRecordsKey(f.RecordsKey); err != nil {
		return Kit{}, err
	}
	raw, err := base64.StdEncoding.DecodeString(f.ConfigKey)
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return Kit{}, fmt.Errorf("kit: config_key: expected %d bytes of an Ed25519 public key in base64", ed25519.PublicKeySize)
	}
	k.ConfigKey = raw
	if _, err := note.NewVerifier(f.LogKey); err != nil {
		return Kit{}, fmt.Errorf("kit: log_key: expected a note verifier key: %w", err)
	}
	return k, nil
}

// ShortFingerprint is the first 8 bytes of the fingerprint in groups, for people to compare.
func (k Kit) ShortFingerprint() string {
	s := strings.ToUpper(fmt.Sprintf("%x", k.Fingerprint[:8]))
	return s[0:4] + "-" + s[4:8] + "-" + s[8:12] + "-" + s[12:16]
}

// Since is when the youngest of the kit's roots began: a kit that holds it is no older, so no present is earlier.
func (k Kit) Since() (t time.Time) {
	for _, c := range k.Roots {
		if c.NotBefore.After(t) {
			t = c.NotBefore
		}
	}
	return t
}

// Pool is the kit's roots as a pool.
func (k Kit) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range k.Roots {
		pool.AddCert(c)
	}
	return pool
}

func checkServers(servers []string) error {
	if len(servers) == 0 || len(servers) > MaxServers {
		return fmt.Errorf("servers: %d addresses; expected 1 to %d of host:port", len(servers), MaxServers)
	}
	for i, s := range servers {
		host, port, err := net.SplitHostPort(s)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || host == "" || perr != nil || n == 0 || len(s) > maxServer || steers(s) {
			return fmt.Errorf("servers[%d]: %.300q; expected host:port such as wardlink.hospital.example:8883", i, s)
		}
	}
	return nil
}

// maxServer is the longest address: a DNS name has at most 253 bytes (RFC 1035, 2.3.4), and a port five.
const maxServer = 253 + 1 + 5

// steers finds what could steer a terminal, and blanks.
func steers(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

func parseRoots(texts []string) ([]*x509.Certificate, error) {
	if len(texts) == 0 || len(texts) > 16 {
		return nil, fmt.Errorf("kit: roots: %d certificates; expected 1 to 16", len(texts))
	}
	var roots []*x509.Certificate
	for i, text := range texts {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) != 0 {
			return nil, fmt.Errorf("kit: roots[%d]: expected one PEM certificate", i)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("kit: roots[%d]: %w", i, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("kit: roots[%d]: %q is no CA certificate", i, c.Subject)
		}
		roots = append(roots, c)
	}
	return roots, nil
}

func parseRecordsKey(text string) (seal.PublicKey, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return seal.PublicKey{}, fmt.Errorf("kit: records_key: not base64: %w", err)
	}
	key, err := seal.ParsePublicKey(raw)
	if err != nil {
		return seal.PublicKey{}, fmt.Errorf("kit: records_key: %w", err)
	}
	return key, nil
}
