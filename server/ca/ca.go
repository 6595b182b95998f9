// Package ca is the hospital's certificate authority: an attestation CA, which certifies attestation keys of TPMs that the registry
// knows, and behind it an embedded smallstep authority that turns each fresh attestation (ACME device-attest-01) into a gateway's
// X.509-SVID. Nothing else of smallstep's API is served, so nothing else can make it sign.
//
// Who decides what: enroll/verify judges the TPM structures; the registry says which gateway an endorsement key is, asked when the
// AK is certified, when the attestation is accepted and once more before the certificate is handed out; no certificate leaves
// before its key is in the registry and its event in the journal.
package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wardlink/audit"
	"wardlink/enroll/verify"
	"wardlink/internal/spiffe"
	"wardlink/server/boot"
	"wardlink/server/ca/acmedb"
	"wardlink/server/sqldb"
)

// Registry is what the CA asks. An adapter maps the registry's own errors to the two below.
type Registry interface {
	// ByEK names the gateway that owns an endorsement key (SHA-256 of its PKIX DER): ErrUnknown; the name and ErrNotActive, a
	// *RevokedError or *CutOffError among them.
	ByEK(ctx context.Context, ek [32]byte) (gateway string, err error)
	// Contend notes that a TPM claimed to be who it cannot be, which was refused.
	Contend(ctx context.Context, c Contention) error
	// Wait puts a TPM that has proven its EK into the list for an operator to approve.
	Wait(ctx context.Context, w Waiting) error
	// Attested notes which attestation key a gateway's TPM has proven to hold, what it is, and how it booted, which it judges: what follows
	// from that has happened when it returns nil. ErrTaken for a TPM that has proven to be another gateway, too; a
	// *CodeError for one that must show a one-time code, which code is not.
	Attested(ctx context.Context, gateway string, v *verify.Verified, code string, booted boot.Measurement) error
	// AddKey keeps a device key and its certificate, durably; ErrNotActive when its gateway may not have one now, ErrTaken for a key that
	// is another gateway's.
	AddKey(ctx context.Context, k Key) error
}

var (
	// ErrUnknown: no gateway has this endorsement key.
	ErrUnknown = errors.New("endorsement key is not in the registry")
	// ErrNotActive: its gateway may not have a certificate now.
	ErrNotActive = errors.New("gateway is not active")
	// ErrTaken: the device key, or the TPM, is another gateway's.
	ErrTaken = errors.New("key is another gateway's")
)

// CodeError is why a TPM that is a gateway's is not certified: Why says what is wrong with the one-time code that it gave.
type CodeError struct{ Why string }

func (e *CodeError) Error() string { return e.Why }

// RevokedError is the ErrNotActive of a gateway that an operator cut off, for the reason that he gave.
type RevokedError struct{ Reason string }

func (e *RevokedError) Error() string { return "gateway is revoked: " + e.Reason }

// Unwrap gives ErrNotActive.
func (e *RevokedError) Unwrap() error { return ErrNotActive }

// CutOffError is the ErrNotActive of a gateway that an operator suspended or decommissioned, or whose board was replaced. What is told to
// the TPM is a problem of Type, one of enroll's.
type CutOffError struct {
	Type, Title, Reason string
	Order               []byte // what a decommissioned gateway is told to do, signed; may be nil
}

func (e *CutOffError) Error() string { return "gateway is " + e.Title + ": " + e.Reason }

// Unwrap gives ErrNotActive.
func (e *CutOffError) Unwrap() error { return ErrNotActive }

// Contention is a claim that was refused: of the TPM of a gateway to be another (Rival), or, with Disk, that of another TPM (Rival, a gateway or a
// fingerprint) whose disk is the gateway's.
type Contention struct {
	Gateway, Rival string
	Disk           bool
	Peer           string // ip:port
}

// Waiting is a TPM that has proven its EK, which nobody has entered.
type Waiting struct {
	EK                  [32]byte // SHA-256 of EKPublic
	EKPublic            []byte   // PKIX DER
	Manufacturer, Model string   // from the EK certificate, else the TPM's own words
	Chain               bool     // the EK certificate chains to a known maker
	Peer                string   // ip:port
	Serial              string   // what the gateway says that its serial number is; unproven
}

// Key is a gateway's device key and the certificate issued for it.
type Key struct {
	Gateway             string
	EK                  [32]byte // under which the TPM attested it
	SPKI                [32]byte // SHA-256 of Public
	Public              []byte   // PKIX DER
	Serial              string   // lower-case hex
	NotBefore, NotAfter time.Time
}

// Config is what a CA needs. All fields without "may" are required.
type Config struct {
	TrustDomain    string
	DNSNames       []string // server names and addresses under which gateways reach this server
	Roots          []*x509.Certificate
	Issuing        *x509.Certificate // the first; SetIssuer changes it
	IssuingKey     crypto.Signer
	Attestation    *x509.Certificate
	AttestationKey crypto.Signer
	DB             *sqldb.DB // with acmedb.Migrations; several CAs may share it
	// EKTrust gives the TPM makers' CAs, as of now; it may be nil, then every EK must be pinned by the registry.
	EKTrust  func() verify.Trust
	Registry Registry
	Events   func(context.Context, audit.Event) error // durable when it returns nil
	Refused  func(peer, reason string)                // may be nil; refusals before a proven identity, to be aggregated
	Needs    func(context.Context) error              // may be nil; asked by Probe: what the registry and the journal must be able to do
	// Withdrawn gives at most so many certificates that count no more before their end, or an error if there are more; nil: no list is served.
	Withdrawn func(ctx context.Context, most int) ([]x509.RevocationListEntry, error)
	Now       func() time.Time // may be nil: time.Now
	Log       *slog.Logger
	CertLife  time.Duration // of gateways' certificates; 0 means 24 hours
	AKLife    time.Duration // of AK certificates; 0 means 1 hour
	PerSource int           // enrolments a second from one address, 60 times that at once; 0 means 10
	Limits    acmedb.Limits
}

// CA serves the enrolment protocols and issues certificates. It is an http.Handler for /attestation/, /acme/ and /crl.
type CA struct {
	cfg       Config
	issuer    atomic.Pointer[issuer]
	sources   *sources
	authority atomic.Pointer[embedded] // nil while its tables cannot be opened
	opening   sync.Mutex
	handler   http.Handler
	health    health
	lists     lists
	bodyTime  time.Duration // bodyTimeout
}

// New opens the CA's tables and starts the embedded authority. Tables that cannot be read or written now are no error: the server must start
// all the same, to serve the gateways that have certificates. Health says so, and Probe tries again.
func New(cfg Config) (*CA, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Refused == nil {
		cfg.Refused = func(string, string) {}
	}
	if cfg.CertLife == 0 {
		cfg.CertLife = 24 * time.Hour
	}
	if cfg.AKLife == 0 {
		cfg.AKLife = time.Hour
	}
	if cfg.PerSource == 0 {
		cfg.PerSource = 10
	}
	if err := check(cfg); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	c := &CA{cfg: cfg, sources: newSources(cfg.Now, cfg.PerSource), bodyTime: bodyTimeout}
	c.issuer.Store(&issuer{cfg.Issuing, cfg.IssuingKey})
	if err := c.open(); err != nil {
		cfg.Log.Error("the CA cannot open its tables; no gateway gets a certificate until it can", "error", err)
	}
	c.handler = c.routes()
	return c, nil
}

func check(cfg Config) error {
	if err := spiffe.ValidTrustDomain(cfg.TrustDomain); err != nil {
		return err
	}
	switch {
	case len(cfg.Roots) == 0:
		return errors.New("no root certificate")
	case cfg.Issuing == nil || cfg.IssuingKey == nil || cfg.Attestation == nil || cfg.AttestationKey == nil:
		return errors.New("an authority's certificate or key is missing")
	case cfg.Registry == nil || cfg.Events == nil || cfg.Log == nil:
		return errors.New("registry, events and log are required")
	case cfg.DB == nil || len(cfg.DNSNames) == 0:
		return errors.New("no database, or no server name")
	case cfg.PerSource < 0:
		return fmt.Errorf("%d enrolments a second from one address; expected a positive number", cfg.PerSource)
	case cfg.CertLife < time.Minute || cfg.AKLife < time.Second:
		return fmt.Errorf("lives %v and %v: expected at least a minute for certificates, a second for AK certificates", cfg.CertLife, cfg.AKLife)
	}
	if !samePublic(cfg.Issuing, cfg.IssuingKey) || !samePublic(cfg.Attestation, cfg.AttestationKey) {
		return errors.New("an authority's key is not its certificate's")
	}
	if cfg.Attestation.CheckSignatureFrom(cfg.Attestation) != nil {
		return errors.New("the attestation CA must be its own root")
	}
	return nil
}

func samePublic(cert *x509.Certificate, key crypto.Signer) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(cert.PublicKey)
}

// Run prunes the CA's tables until ctx ends.
func (c *CA) Run(ctx context.Context) error {
	tick := time.NewTicker(openInterval)
	defer tick.Stop()
	for {
		if e := c.authority.Load(); e != nil {
			return e.store.Run(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C: // whether Probe could open them
		}
	}
}

const openInterval = 10 * time.Second

// Close ends the authority. Requests must have ended, and Run. The database stays open.
func (c *CA) Close() error {
	c.opening.Lock()
	defer c.opening.Unlock()
	if e := c.authority.Swap(nil); e != nil {
		return e.close()
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (c *CA) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.handler.ServeHTTP(w, r) }

// Issue signs t for the API and journals the act before the certificate is returned, leaf first. who and peer are the operator's.
func (c *CA) Issue(ctx context.Context, who audit.Actor, peer string, t Template) ([]*x509.Certificate, error) {
	by := c.issuer.Load()
	cert, err := NewCertificate(by.cert, by.key, t, c.cfg.Now())
	if err != nil {
		return nil, err
	}
	if err := c.issued(ctx, who, peer, t.ID, cert); err != nil {
		return nil, err
	}
	return []*x509.Certificate{cert, by.cert}, nil
}

// issued journals that a certificate is about to be handed out.
func (c *CA) issued(ctx context.Context, who audit.Actor, peer string, id spiffe.ID, cert *x509.Certificate) error {
	spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	err := c.cfg.Events(ctx, audit.Event{Type: audit.CertIssued, Time: c.cfg.Now().UnixMilli(), Actor: who, Peer: peer,
		Target: id.String(), Outcome: audit.Success, Detail: map[string]string{
			"serial": Serial(cert), "spki_sha256": hex.EncodeToString(spki[:]),
			"not_before": cert.NotBefore.UTC().Format(time.RFC3339), "not_after": cert.NotAfter.UTC().Format(time.RFC3339),
		}})
	if err != nil {
		return fmt.Errorf("certificate for %s is withheld, its event could not be journaled: %w", id, err)
	}
	return nil
}

// Serial is a certificate's serial as events, registry and journal write it: lower-case hex.
func Serial(cert *x509.Certificate) string { return strings.ToLower(cert.SerialNumber.Text(16)) }

func (c *CA) trust() verify.Trust {
	if c.cfg.EKTrust == nil {
		return verify.Trust{}
	}
	return c.cfg.EKTrust()
}
