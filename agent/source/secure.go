package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"wardlink/internal/spiffe"
)

// TLS is what a source shows to devices, and asks of them (IHE ATNA, ITI-19 "Authenticate Node": both ends show certificates).
//
// TLS 1.2 is the least, since devices are old; 1.3 is taken where both have it. Of 1.2 only ECDHE with AES-GCM (BCP 195): nothing that
// was recorded opens when a key is stolen later. No session is resumed: a resumed one would skip the proof of the key.
type TLS struct {
	Certificate string   // path of the certificate that devices see, PEM, issuing CAs after it
	Key         string   // path of its private key, PEM; readable by its owner alone
	ClientCA    string   // path of the CAs of devices' certificates, PEM; "": devices show none
	Allow       []string // names, one of which a device's certificate must have; empty: every certificate of those CAs

	// Now is what is known of the present; nil is the system's clock. While it is only a floor, a certificate is refused for its dates
	// only where it ended before the floor: a gateway that boots in 1970 does not turn its monitors away.
	Now func() spiffe.Moment
}

// handshakeTimeout bounds a TLS handshake, and with it how long somebody who never speaks holds a place.
const handshakeTimeout = 15 * time.Second

// TLSStats is how a source's TLS stands.
type TLSStats struct {
	NotAfter    time.Time `json:"not_after"`             // end of the certificate that devices see; zero while it cannot be read
	ClientCerts bool      `json:"client_certificates"`   // devices must show certificates
	Trouble     string    `json:"trouble,omitempty"`     // what is wrong with the files, and the mend
	Refused     uint64    `json:"refused"`               // handshakes that failed
	Expired     uint64    `json:"expired"`               // of them because the device's certificate has ended, or not begun
	Reason      string    `json:"reason,omitempty"`      // of the last, a constant text
	LastRefused time.Time `json:"last_refused"`          //
	LastExpired time.Time `json:"last_expired,omitzero"` //
}

// secured is TLS at work: the files, as they were read last.
type secured struct {
	cfg              TLS
	refused, expired tally

	mu      sync.Mutex
	read    []fileMark
	conf    *tls.Config // nil until the files could be read
	leaf    *x509.Certificate
	trouble string
	reason  string
}

// fileMark tells whether a file is another one than before.
type fileMark struct {
	at   time.Time
	size int64
	err  bool
}

func newSecured(cfg TLS) *secured {
	if cfg.Now == nil {
		cfg.Now = func() spiffe.Moment { return spiffe.Moment{Time: time.Now()} }
	}
	s := &secured{cfg: cfg}
	_, _ = s.current() // stats tell
	return s
}

// current is the configuration of the next handshake. Files that were replaced are read anew; where they cannot be used, what was read
// before goes on, and stats tell.
func (s *secured) current() (*tls.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var marks []fileMark
	for _, path := range []string{s.cfg.Certificate, s.cfg.Key, s.cfg.ClientCA} {
		var m fileMark
		if path != "" {
			if info, err := os.Stat(path); err == nil {
				m.at, m.size = info.ModTime(), info.Size()
			} else {
				m.err = true
			}
		}
		marks = append(marks, m)
	}
	if s.read == nil || s.trouble != "" || !slices.Equal(marks, s.read) {
		conf, leaf, err := s.cfg.load()
		s.read, s.trouble = marks, ""
		if err != nil {
			s.trouble = err.Error()
		} else {
			s.conf, s.leaf = conf, leaf
		}
	}
	if s.conf == nil {
		return nil, errors.New(s.trouble)
	}
	return s.conf, nil
}

// load reads the files. Its errors name key, file and mend.
func (t *TLS) load() (*tls.Config, *x509.Certificate, error) {
	chain, err := readPEM("tls.certificate", t.Certificate, false)
	if err != nil {
		return nil, nil, err
	}
	key, err := readPEM("tls.key", t.Key, true)
	if err != nil {
		return nil, nil, err
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil { // its errors speak of PEM, and of keys that do not match; none quotes a key
		return nil, nil, fmt.Errorf("tls: %s and %s are no certificate with its private key (%w); write both again, the certificate first in its file", t.Certificate, t.Key, err)
	}
	conf := &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		},
	}
	if t.ClientCA == "" {
		return conf, cert.Leaf, nil
	}
	cas, err := readPEM("tls.client_ca", t.ClientCA, false)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(cas) {
		return nil, nil, fmt.Errorf("tls.client_ca: %s holds no certificate in PEM; put the CA of the devices' certificates into it", t.ClientCA)
	}
	// The chain is judged in VerifyConnection, at a moment that crypto/tls could not be told: the clock may be wrong.
	conf.ClientAuth = tls.RequireAnyClientCert
	conf.VerifyConnection = func(cs tls.ConnectionState) error { return t.judge(cs.PeerCertificates, pool) }
	return conf, cert.Leaf, nil
}

// Examine reads the files and says what is wrong with them at now: nil, or an error that names file and mend.
func (t *TLS) Examine(now time.Time) error {
	_, leaf, err := t.load()
	if err != nil {
		return err
	}
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("tls.certificate: %s ended at %s; put a new one and its key in place, no restart is needed", t.Certificate, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

func readPEM(key, path string, private bool) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; put the file there, readable by the agent's user", key, err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: %s is no regular file", key, path)
	case info.Size() > 1<<20:
		return nil, fmt.Errorf("%s: %s has %d bytes; certificates and keys have a few thousand", key, path, info.Size())
	case private && info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s: %s has mode %#o, so others than its owner may read it: chmod 600 %s, and make a new key if others had access", key, path, info.Mode().Perm(), path)
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%s: %w; make the agent's user its owner", key, err)
	}
	return data, err
}

// errExpired is a certificate outside of its dates.
var errExpired = errors.New("the device's certificate has ended or not begun")

// errName is a certificate without a name that is allowed.
var errName = errors.New("no name of the device's certificate is in tls.allow")

// judge is the one place that decides whether a device's certificate counts.
func (t *TLS) judge(chain []*x509.Certificate, roots *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: t.Now().At(chain), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return errExpired
	case err != nil:
		return err
	case len(t.Allow) > 0 && !slices.ContainsFunc(names(chain[0]), func(n string) bool { return slices.Contains(t.Allow, n) }):
		return errName
	}
	return nil
}

// names are what a certificate calls its holder: subject alternative names, then the subject's common name.
func names(c *x509.Certificate) []string {
	out := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	for _, u := range c.URIs {
		out = append(out, u.String())
	}
	out = append(out, c.EmailAddresses...)
	if c.Subject.CommonName != "" {
		out = append(out, c.Subject.CommonName)
	}
	return out
}

// shake makes a TLS connection of c, and gives the names of the device's certificate. The error is a constant text, for logs and reports.
func (s *secured) shake(ctx context.Context, c net.Conn) (net.Conn, []string, error) {
	conf, err := s.current()
	if err != nil {
		return nil, nil, s.refuse("the gateway's certificate for devices cannot be used", false)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	t := tls.Server(c, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		reason, expired := why(err)
		return nil, nil, s.refuse(reason, expired)
	}
	if chain := t.ConnectionState().PeerCertificates; len(chain) > 0 {
		return t, names(chain[0]), nil
	}
	return t, nil, nil
}

func (s *secured) refuse(reason string, expired bool) error {
	s.mu.Lock()
	s.reason = reason
	s.mu.Unlock()
	s.refused.Add(1)
	if expired {
		s.expired.Add(1)
	}
	return errors.New(reason)
}

// why puts a failed handshake into words that hold nothing of the peer's.
func why(err error) (reason string, expired bool) {
	var record tls.RecordHeaderError
	var authority x509.UnknownAuthorityError
	var timeout net.Error
	switch {
	case errors.Is(err, errExpired):
		return errExpired.Error(), true
	case errors.Is(err, errName):
		return errName.Error(), false
	case errors.As(err, &authority):
		return "the device's certificate is of no CA in tls.client_ca", false
	case errors.As(err, &record):
		return "the device does not speak TLS", false
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "the device did not finish the handshake in time", false
	case err.Error() == "tls: client didn't provide a certificate":
		return "the device showed no certificate", false
	}
	return "the handshake failed: no common version or cipher suite, or the device refuses the gateway's certificate", false
}

func (s *secured) stats() *TLSStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &TLSStats{
		ClientCerts: s.cfg.ClientCA != "", Trouble: s.trouble, Refused: s.refused.Load(), Expired: s.expired.Load(),
		Reason: s.reason, LastRefused: s.refused.at(), LastExpired: s.expired.at(),
	}
	if s.leaf != nil {
		st.NotAfter = s.leaf.NotAfter
	}
	return st
}
