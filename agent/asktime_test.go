package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wardlink/agent/uplink"
	"wardlink/enroll"
	"wardlink/internal/spiffe"
)

// timeServer is a hospital that tells the time, with what the test makes of each answer.
type timeServer struct {
	t      *testing.T
	root   *x509.Certificate
	key    ed25519.PrivateKey
	server *httptest.Server
	answer func(r enroll.TimeRequest) []byte
	asked  []enroll.TimeRequest
}

func newTimeServer(t *testing.T, service string) *timeServer {
	t.Helper()
	s := &timeServer{t: t}
	_, s.key, _ = ed25519.GenerateKey(rand.Reader)
	rootKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leafKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	make := func(c, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), rootKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	// A server of 2026, which a gateway in 1970 could not believe by its dates.
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	s.root = make(template, template, rootKey)
	id, _ := url.Parse("spiffe://ward.example/service/" + service)
	leaf := make(&x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{id}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature}, s.root, leafKey)
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		request, err := enroll.ParseTimeRequest(body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != enroll.TimePath {
			t.Errorf("asked %s %s: %v", r.Method, r.URL, err)
		}
		s.asked = append(s.asked, request)
		_, _ = w.Write(s.answer(request))
	}))
	s.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.server.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey}}}
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	return s
}

// agent is one that boots in 1970 with the server's kit.
func (s *timeServer) agent() *Agent {
	s.t.Helper()
	k, err := openTimekeeper(filepath.Join(s.t.TempDir(), "time"), clock{wall: func() time.Time { return time.Unix(60, 0) }}, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	return &Agent{
		log: slog.New(slog.DiscardHandler), time: k, config: &configStore{}, kit: enroll.Kit{
			TrustDomain: "ward.example", Servers: []string{s.server.Listener.Addr().String()}, Roots: []*x509.Certificate{s.root},
			ConfigKey: s.key.Public().(ed25519.PublicKey),
		},
	}
}

func (s *timeServer) sign(r enroll.TimeRequest, at time.Time, key ed25519.PrivateKey) []byte {
	doc, err := enroll.SignTime(r, at, key)
	if err != nil {
		s.t.Fatal(err)
	}
	return doc
}

// TestOnlyTheHospitalTellsTheTime: an answer that is forged, recorded, of a foreign key or of another gateway's leaves the clock untrusted.
func TestOnlyTheHospitalTellsTheTime(t *testing.T) {
	s := newTimeServer(t, "ingest")
	a := s.agent()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	now := time.Now()
	_, foreign, _ := ed25519.GenerateKey(rand.Reader)
	recorded := s.sign(enroll.NewTimeRequest(""), now, s.key)
	for _, c := range []struct {
		what   string
		answer func(r enroll.TimeRequest) []byte
		want   string // of the error; "" is none
	}{
		{"foreign key", func(r enroll.TimeRequest) []byte { return s.sign(r, now, foreign) }, "config key"},
		{"recorded", func(enroll.TimeRequest) []byte { return recorded }, "another request"},
		{"another gateway's", func(r enroll.TimeRequest) []byte { r.Gateway = "icu-8"; return s.sign(r, now, s.key) }, "gateway"},
		{"forged", func(r enroll.TimeRequest) []byte {
			doc := s.sign(r, now, s.key)
			doc[len(doc)/2] ^= 1
			return doc
		}, "signed time"},
		{"endless", func(r enroll.TimeRequest) []byte { return make([]byte, 1<<20) }, "at most"},
		{"nothing", func(r enroll.TimeRequest) []byte { return nil }, "signed time"},
		{"honest", func(r enroll.TimeRequest) []byte { return s.sign(r, now, s.key) }, ""},
	} {
		s.answer = c.answer
		err := a.askTime(ctx)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; expected %q", c.what, err, c.want)
		}
		if m := a.time.moment(); m.Floor != (c.want != "") {
			t.Errorf("%s: trusted %t", c.what, !m.Floor)
		}
	}
	if wrong := time.Until(a.time.best()).Abs(); wrong > 10*time.Second {
		t.Errorf("the time is wrong by %v", wrong)
	}
	seen := map[[32]byte]bool{}
	for _, r := range s.asked {
		if seen[r.Nonce] {
			t.Error("a nonce was used again")
		}
		seen[r.Nonce] = true
	}
}

// TestTimeIsAskedOfOursAlone: dates are forgiven, chain and identity are not.
func TestTimeIsAskedOfOursAlone(t *testing.T) {
	other := newTimeServer(t, "api")
	other.answer = func(r enroll.TimeRequest) []byte { return other.sign(r, time.Now(), other.key) }
	a := other.agent()
	if err := a.askTime(t.Context()); err == nil || !strings.Contains(err.Error(), "expected spiffe") {
		t.Errorf("another service: %v", err)
	}
	ours, foreign := newTimeServer(t, "ingest"), newTimeServer(t, "ingest")
	a = ours.agent()
	a.kit.Servers = []string{foreign.server.Listener.Addr().String()}
	if err := a.askTime(t.Context()); err == nil || !strings.Contains(err.Error(), "does not trust") {
		t.Errorf("a foreign root: %v", err)
	}
	if len(other.asked)+len(foreign.asked) > 0 {
		t.Error("a server that is not ours was asked")
	}
	// A server that cannot be had does not keep the next one from being asked.
	ours.answer = func(r enroll.TimeRequest) []byte { return ours.sign(r, time.Now(), ours.key) }
	a.kit.Servers = append(a.kit.Servers, ours.server.Listener.Addr().String())
	if err := a.askTime(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestACertificateThatEndedIsRenewedAtOnce: the gateway was off for longer than its certificate lives, and finds out with the time.
func TestACertificateThatEndedIsRenewedAtOnce(t *testing.T) {
	s := newTimeServer(t, "ingest")
	s.answer = func(r enroll.TimeRequest) []byte { return s.sign(r, time.Now(), s.key) }
	for name, c := range map[string]struct {
		end  time.Time
		want int
	}{"ended": {time.Now().Add(-time.Hour), 1}, "good": {time.Now().Add(time.Hour), 0}} {
		a, renewals := s.agent(), 0
		a.identity, a.renew = &enroll.Identity{Gateway: "icu-7", NotAfter: c.end}, func() { renewals++ }
		a.time.raise(c.end.Add(-24*time.Hour), "this gateway's certificate")
		a.timeKnown() // nothing is known
		if err := a.askTime(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.timeKnown()
		if renewals != c.want {
			t.Errorf("%s: renewed %d times, expected %d", name, renewals, c.want)
		}
	}
}

// TestTheTimeIsDoubtedWithoutASession: a time that was told by a server whose clock was wrong keeps every session from being made, so it is
// asked for again long before the hour is over, at another moment by each gateway.
func TestTheTimeIsDoubtedWithoutASession(t *testing.T) {
	k := keeperAt(t, filepath.Join(t.TempDir(), "time"), 1, &handWall{time.Unix(60, 0)})
	for name, c := range map[string]struct {
		known       bool
		nudge       bool
		least, most time.Duration
	}{
		"known":       {true, false, askDoubt, 2*askDoubt + askLook},
		"not known":   {false, false, time.Hour, time.Hour},
		"asked again": {true, true, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			link, err := uplink.New(uplink.Config{
				Servers: []string{"h:1"}, Server: spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Service, Name: "ingest"}, Roots: x509.NewCertPool(), Buffer: linkBuffer{},
				Identity: func() (tls.Certificate, string, error) { return tls.Certificate{}, "", errNoIdentity },
				Sealing:  func(context.Context, [16]byte) ([]byte, error) { return nil, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			a := &Agent{log: slog.New(slog.DiscardHandler), time: k, link: link, askNow: make(chan struct{}, 1)}
			if c.nudge {
				a.askNow <- struct{}{}
			}
			time.Sleep(3 * askDoubt) // since when there is no session
			began := time.Now()
			if !a.pauseTime(t.Context(), time.Hour, c.known) {
				t.Error("its context has not ended")
			}
			if d := time.Since(began); d < c.least || d > c.most {
				t.Errorf("%s: after %v; expected %v to %v", name, d, c.least, c.most)
			}
		})
	}
}
