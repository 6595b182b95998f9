package enroll

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"wardlink/enroll/tpm"
	"wardlink/internal/build"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
)

// The waits of the gateway's half of the protocol.
const (
	attemptTimeout = 5 * time.Minute  // one enrolment, TPM and network together; RSA key generation may take half a minute
	requestTimeout = 30 * time.Second // one request of the attestation protocol
	maxAnswer      = 256 << 10        // bytes of one answer; certificates and problem documents have a few KB
)

// ErrNone is returned by Load on a gateway that was never enrolled.
var ErrNone = errors.New("not enrolled yet")

// WaitingError: the hospital does not know this TPM. It waits in the list until an operator approves it.
type WaitingError struct {
	Fingerprint string // short form of the EK's hash, as the operator sees it
	Former      string // the gateway whose disk this is, if it was with another board; else ""
}

func (e *WaitingError) Error() string {
	return "the gateway waits for approval under the fingerprint " + e.Fingerprint + "; run: " + AdmitCommand(e.Fingerprint, e.Former)
}

// AdmitCommand is what an operator runs to admit the board that waits under a fingerprint, with the disk of the gateway former or a new one.
func AdmitCommand(fingerprint, former string) string {
	if former == "" {
		return ApproveCommand(fingerprint)
	}
	return "wardlink gateway replace " + former + " --tpm " + fingerprint + " --reason TEXT"
}

// ApproveCommand is what an operator runs to admit the gateway that waits under a fingerprint.
func ApproveCommand(fingerprint string) string {
	return "wardlink gateway approve " + fingerprint + " --id NAME --ward WARD"
}

// CutOffError: an operator has cut this gateway off. It gets no certificate until an operator takes that back, if ever.
type CutOffError struct {
	What   string // "revoked", "suspended", "decommissioned", "replaced", or "kept out" (outside of its validity)
	Reason string // the operator's, or the validity; may be empty
	Order  []byte // of a decommissioned gateway: the hospital's order to wipe itself, not verified yet
}

func (e *CutOffError) Error() string {
	if e.Reason == "" {
		return e.What + " by the hospital"
	}
	return e.What + " by the hospital: " + e.Reason
}

// Config is what an Enroller needs. Every field but Now, Serial, CodeFile and EventLog is required.
type Config struct {
	TPM         *tpm.TPM
	Dir         string       // state directory: key files, account key, certificate chain
	Attestation string       // base URL of the attestation CA; /attest and /secret are appended
	Directory   string       // URL of the ACME directory
	HTTP        *http.Client // trusts the kit's roots; its timeouts, if any, apply beside ours
	Log         *slog.Logger
	Serial      string           // the box's serial number, told to the operators with the first attestation; "" is none
	CodeFile    string           // holds the one-time code that a first enrolment may want, and is removed once it was taken; "" or no such file is none
	EventLog    string           // the firmware's event log, which goes with each quote; "" is the kernel's, tpm.EventLog
	Now         func() time.Time // the best that is known of the time, for when to renew; nil: time.Now
}

// Enroller obtains and renews this gateway's certificate. Its methods are safe for concurrent use; enrolments run one at a time.
type Enroller struct {
	cfg   Config
	http  *http.Client
	hurry chan struct{} // one place: an ask that waits stands for all

	mu      sync.Mutex // held for a whole enrolment
	keys    *tpm.Keys
	former  string // the gateway that this disk was with another board: this board must be the same one; "" when it is not another board
	refused string // the one-time code that the server has refused
}

// Identity is who this gateway is and the certificate that says so.
type Identity struct {
	Gateway     string
	ID          spiffe.ID
	Certificate tls.Certificate // Leaf is parsed; PrivateKey is the *tpm.Signer
	NotBefore   time.Time
	NotAfter    time.Time
}

// Signer is the device key, which also signs sealing records.
func (id *Identity) Signer() crypto.Signer { return id.Certificate.PrivateKey.(crypto.Signer) }

// New checks cfg. It touches neither TPM nor network.
func New(cfg Config) (*Enroller, error) {
	switch {
	case cfg.TPM == nil:
		return nil, errors.New("enroll: no TPM")
	case cfg.Dir == "":
		return nil, errors.New("enroll: no state directory")
	case !strings.HasPrefix(cfg.Attestation, "https://"), !strings.HasPrefix(cfg.Directory, "https://"):
		return nil, fmt.Errorf("enroll: attestation %q and directory %q: expected https:// URLs", cfg.Attestation, cfg.Directory)
	case cfg.HTTP == nil, cfg.Log == nil:
		return nil, errors.New("enroll: no HTTP client or no log")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.EventLog == "" {
		cfg.EventLog = tpm.EventLog
	}
	client := *cfg.HTTP
	client.Transport = boundedTransport{client.Transport}
	return &Enroller{cfg: cfg, http: &client, hurry: make(chan struct{}, 1)}, nil
}

// Enroll attests the TPM and obtains a certificate for the device key, for the first time or again. The certificate is durable
// before Enroll returns. A *WaitingError means that an operator must approve this gateway.
func (e *Enroller) Enroll(ctx context.Context) (*Identity, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	keys, err := e.openKeys(ctx)
	if err != nil {
		return nil, err
	}
	attested, err := e.attest(ctx, keys)
	if waiting := (*WaitingError)(nil); errors.As(err, &waiting) {
		waiting.Former = e.former
	}
	if err != nil {
		return nil, fmt.Errorf("attestation: %w", e.doubt(err))
	}
	if e.former != "" && attested.gateway != e.former {
		return nil, fmt.Errorf("this board is gateway %s, and the disk in it is gateway %s's: put the disk where it belongs, "+
			"or have an operator run 'wardlink gateway replace %s' for this board; what is buffered is kept", attested.gateway, e.former, e.former)
	}
	chain, err := e.order(ctx, keys, attested)
	if err != nil {
		return nil, fmt.Errorf("certificate order: %w", e.doubt(err))
	}
	identity, err := newIdentity(keys.Device(), chain)
	if err != nil {
		return nil, fmt.Errorf("issued certificate: %w", err)
	}
	if identity.Gateway != attested.gateway {
		return nil, fmt.Errorf("issued certificate: it names %s, the attestation CA named %s", identity.Gateway, attested.gateway)
	}
	if err := e.store(chain); err != nil {
		return nil, fmt.Errorf("keep the certificate: %w", err)
	}
	return identity, nil
}

// Load returns the certificate of an earlier enrolment, ErrNone when there is none that fits this TPM's key. It does not look at
// the clock, which a gateway cannot trust at boot.
func (e *Enroller) Load(ctx context.Context) (*Identity, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	chain, err := e.stored()
	if err != nil {
		return nil, err
	}
	keys, err := e.openKeys(ctx)
	if err != nil {
		return nil, err
	}
	identity, err := newIdentity(keys.Device(), chain)
	if err != nil {
		// A certificate can be had again; keys could not. So this heals by itself, but not in silence.
		e.cfg.Log.Warn("the kept certificate does not fit; enrolling again", "error", err)
		return nil, ErrNone
	}
	return identity, nil
}

// boundedTransport names the agent, and cuts off answers that are longer than any honest one.
type boundedTransport struct{ next http.RoundTripper }

func (b boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	next := b.next
	if next == nil {
		next = http.DefaultTransport
	}
	r = r.Clone(r.Context())
	r.Header.Set(telemetry.HelloHeader, telemetry.OwnHello(build.Version).String())
	answer, err := next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	answer.Body = &boundedBody{answer.Body, maxAnswer}
	return answer, nil
}

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("answer is longer than %d bytes", maxAnswer)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
