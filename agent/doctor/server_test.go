package doctor

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/agent"
	"wardlink/enroll"
	"wardlink/internal/certtest"
	"wardlink/telemetry/seal"
)

// public is an authority that this process takes for one of the world's: the system's roots are read once, before any test.
var public *authority

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "wl-doctor-")
	if err != nil {
		panic(err)
	}
	public = newAuthority(fatal{}, "Example Public CA")
	file := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(file, public.PEM(), 0o600); err != nil {
		panic(err)
	}
	os.Setenv("SSL_CERT_FILE", file)
	os.Setenv("SSL_CERT_DIR", dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// fatal ends the process where there is no test to fail.
type fatal struct{}

func (fatal) Helper()           {}
func (fatal) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// authority is a CA of a test.
type authority struct {
	*certtest.Authority
	t certtest.Failing
}

func newAuthority(t certtest.Failing, name string) *authority {
	t.Helper()
	return &authority{certtest.New(t, name, -48*time.Hour, 48*time.Hour), t}
}

// issue makes a certificate; id is a SPIFFE id, or "" for that of a web server.
func (a *authority) issue(id string, from, until time.Duration) tls.Certificate {
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "ingest.test"}, DNSNames: []string{"ingest.test"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	return a.Issue(template, from, until)
}

const ingest = "spiffe://ward.test/service/ingest"

// kitOf is the kit of a hospital with this root.
func kitOf(t *testing.T, root *authority, servers ...string) enroll.Kit {
	t.Helper()
	records, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	config, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, log, err := note.GenerateKey(rand.Reader, "ward.test/log/1")
	if err != nil {
		t.Fatal(err)
	}
	return enroll.Kit{TrustDomain: "ward.test", Servers: servers, Roots: []*x509.Certificate{root.Cert}, RecordsKey: records.Public(), ConfigKey: config, LogKey: log}
}

// listen serves each connection of a free port by f.
func listen(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return l.Addr().String()
}

// web is a TLS server that answers HTTP.
func web(t *testing.T, c *tls.Config, date time.Time) string {
	t.Helper()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	go srv.Serve(tls.NewListener(l, c))
	return l.Addr().String()
}

// Each way in which a server cannot be reached, provoked by the real thing, is named at the step where it stands.
func TestServerSteps(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "Ward Root")
	plain := func(certs ...tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: certs, NextProtos: []string{"mqtt", "http/1.1"}}
	}
	good := root.issue(ingest, -time.Hour, time.Hour)
	old := plain(good)
	old.MaxVersion = tls.VersionTLS12
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	foreign := func(name, id string) string {
		return web(t, plain(newAuthority(t, name).issue(id, -time.Hour, time.Hour)), time.Now())
	}
	for name, c := range map[string]struct {
		server      string
		step        string // the last one, which failed; "" when all are well
		found, mend string
	}{
		"well":                    {web(t, plain(good), time.Now()), "", "", ""},
		"name":                    {"no-such-host.invalid:8883", "name", "cannot be resolved", "DNS"},
		"port closed":             {closed, "TCP", "nothing listens there", "whether the server runs"},
		"captive portal":          {listen(t, answering("HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n")), "TLS", "plain HTTP", "log this network in"},
		"another protocol":        {listen(t, answering("SSH-2.0-OpenSSH_9\r\n")), "TLS", "speaks no TLS", "port in the kit"},
		"silence":                 {listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), "TLS", "no TLS comes back", "firewall"},
		"cut":                     {listen(t, func(c net.Conn) { _, _ = io.ReadFull(c, make([]byte, 20)) }), "TLS", "is cut as soon as TLS begins", "firewall"},
		"inspecting proxy, known": {foreign("Zscaler Intermediate Root CA (zscaler.net)", ""), "TLS", `a TLS-inspecting proxy (Zscaler) is on the way: the certificate shown for "ingest.test" was issued by "CN=Zscaler Intermediate`, "exempt"},
		"inspecting proxy":        {foreign("Example Clinic Web Filter", ""), "TLS", `inspects TLS on the way: the certificate shown for "ingest.test" was issued by "CN=Example Clinic Web Filter"`, "exempt"},
		"a public web server":     {web(t, plain(public.issue("", -time.Hour, time.Hour)), time.Now()), "TLS", `a public web server answers there (certificate of "ingest.test", issued by "CN=Example Public CA")`, "captive portal"},
		"another hospital":        {foreign("Other Root", "spiffe://other.test/service/ingest"), "TLS", "another hospital answers: spiffe://other.test/service/ingest", "the kit belongs to one hospital"},
		"another root":            {foreign("Ward Root", ingest), "TLS", "its root is not in this kit", "fresh kit"},
		"another service":         {web(t, plain(root.issue("spiffe://ward.test/service/api", -time.Hour, time.Hour)), time.Now()), "TLS", "another service of this hospital", "port in the kit"},
		"not a service":           {web(t, plain(root.issue("", -time.Hour, time.Hour)), time.Now()), "TLS", "another service of this hospital", "port in the kit"},
		"expired":                 {web(t, plain(root.issue(ingest, -2*time.Hour, -time.Hour)), time.Now()), "TLS", "certificate ended", "clock"},
		"not begun":               {web(t, plain(root.issue(ingest, time.Hour, 2*time.Hour)), time.Now()), "TLS", "after this gateway's time", "clock"},
		"TLS 1.2":                 {web(t, old, time.Now()), "TLS", "only TLS 1.2 is spoken", "untouched"},
		"no ALPN":                 {web(t, &tls.Config{Certificates: []tls.Certificate{good}}, time.Now()), "ALPN", `but ""`, "ALPN"},
		"no answer":               {listen(t, mute(plain(good))), "HTTP", "does not answer a request", "server's log"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kit := kitOf(t, root, c.server)
			steps := probe(context.Background(), nil, c.server, kit).judge(kit, time.Now())
			last := steps[len(steps)-1]
			switch {
			case c.step == "" && (agent.Worst(steps) != agent.Well || len(steps) != 5):
				t.Errorf("%+v", steps)
			case c.step != "" && (last.Step != c.step || last.Level == agent.Well || !strings.Contains(last.Found, c.found) || !strings.Contains(last.Mend, c.mend)):
				t.Errorf("%+v\nwant step %s with %q and %q", last, c.step, c.found, c.mend)
			}
			if i := slices.IndexFunc(steps[:len(steps)-1], func(f agent.Finding) bool { return f.Level != agent.Well }); i >= 0 {
				t.Errorf("it went on after %+v", steps[i])
			}
		})
	}
}

// answering says something at once, whatever comes.
func answering(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		_, _ = io.Copy(io.Discard, c)
	}
}

// mute finishes the handshake and says nothing more.
func mute(conf *tls.Config) func(net.Conn) {
	return func(c net.Conn) {
		s := tls.Server(c, conf)
		if s.Handshake() == nil {
			_, _ = io.Copy(io.Discard, s)
		}
	}
}

// Nothing is asked of a server that has not proven itself.
func TestNothingIsSaidToAnImposter(t *testing.T) {
	said := make(chan int, 1)
	conf := &tls.Config{Certificates: []tls.Certificate{newAuthority(t, "Filter").issue("", -time.Hour, time.Hour)}, NextProtos: []string{"http/1.1"}, ClientAuth: tls.RequestClientCert}
	server := listen(t, func(c net.Conn) {
		s := tls.Server(c, conf)
		if err := s.Handshake(); err != nil {
			said <- -1
			return
		}
		n, _ := io.Copy(io.Discard, s)
		said <- int(n) + len(s.ConnectionState().PeerCertificates)
	})
	kit := kitOf(t, newAuthority(t, "Ward Root"), server)
	if r := probe(context.Background(), nil, server, kit); r.asked || r.state == nil {
		t.Errorf("%+v", r)
	}
	if n := <-said; n != 0 {
		t.Errorf("%d bytes or certificates were given away", n)
	}
}

func TestOffset(t *testing.T) {
	root := newAuthority(t, "Ward Root")
	conf := &tls.Config{Certificates: []tls.Certificate{root.issue(ingest, -time.Hour, time.Hour)}, NextProtos: []string{"http/1.1"}}
	for _, ahead := range []time.Duration{0, 3 * time.Hour, -10 * time.Minute} {
		server := web(t, conf, time.Now().Add(ahead))
		r := probe(context.Background(), nil, server, kitOf(t, root, server))
		if r.httpErr != nil || (r.ahead-ahead).Abs() > 20*time.Second { // a loaded machine takes seconds, never these
			t.Errorf("%s: measured %s, %v", ahead, r.ahead, r.httpErr)
		}
	}
}

// A certificate is shown over HTTP, and a server that does not believe it is understood as such.
func TestAuthorisation(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "Ward Root")
	for name, c := range map[string]struct {
		clients *authority
		level   agent.Level
		found   string
	}{
		"believed": {root, agent.Well, "believes this gateway's certificate"},
		"refused":  {newAuthority(t, "Other Root"), agent.Stops, "refuses this gateway's certificate"},
	} {
		server := web(t, &tls.Config{Certificates: []tls.Certificate{root.issue(ingest, -time.Hour, time.Hour)}, NextProtos: []string{"mqtt", "http/1.1"},
			ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: c.clients.Pool()}, time.Now())
		closed := "127.0.0.1:1"
		kit := kitOf(t, root, server, closed)
		got := agent.ProbeAuthorisation(t.Context(), nil, kit, root.issue("spiffe://ward.test/gateway/bed-7", -time.Hour, time.Hour))
		if len(got) != 2 || got[0].Name != server || got[1].Name != closed {
			t.Fatalf("%+v", got)
		}
		says(t, name, got[0], c.level, c.found, "")
		says(t, "closed", got[1], agent.Warning, "could not be shown", "steps to this server")
	}
}
