package egress

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wardlink/internal/spiffe"
)

// answering is a proxy, or what passes for one: it reads the request and answers. A tunnel that it grants leads to where it was asked for.
func answering(t *testing.T, answer func(r *http.Request) string) (address string) {
	t.Helper()
	return listen(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		text := answer(r)
		if _, err := io.WriteString(conn, text); err != nil || !strings.HasPrefix(text, "HTTP/1.1 200") {
			if text == "" {
				_, _ = io.Copy(io.Discard, conn) // silence, until the gateway gives up
			}
			return
		}
		onward, err := net.Dial("tcp", r.Host)
		if err != nil {
			return
		}
		defer onward.Close()
		go func() { _, _ = io.Copy(onward, in) }()
		_, _ = io.Copy(conn, onward)
	})
}

// listen serves each connection of a free port by f.
func listen(t *testing.T, f func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				f(conn)
			}()
		}
	}()
	return l.Addr().String()
}

func credentialsFile(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

var hospital = spiffe.ID{TrustDomain: "ward.test", Kind: spiffe.Service, Name: "ingest"}

// newServer is a hospital's server without any name: its certificate holds a SPIFFE id alone.
func newServer(t *testing.T) (address string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := url.Parse(hospital.String())
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, URIs: []*url.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(rootDER)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(parsed)
	conf := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: key}}, NextProtos: []string{"mqtt"}}
	return listen(t, func(raw net.Conn) {
		conn := tls.Server(raw, conf)
		_, _ = io.Copy(conn, conn)
	}), roots
}

// greets makes a connection, says something on it and hears it back.
func greets(t *testing.T, w *Way, server string, roots *x509.CertPool) error {
	t.Helper()
	conn, err := w.Secure(t.Context(), server, spiffe.ServerTLSAt(roots, hospital, "mqtt", func() spiffe.Moment { return spiffe.Moment{Time: time.Now()} }))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return err
	}
	back := make([]byte, 5)
	if _, err := io.ReadFull(conn, back); err != nil || string(back) != "hello" {
		return fmt.Errorf("came back: %q, %w", back, err)
	}
	return nil
}

// A server is known by its SPIFFE id: no name is looked up, none is in its certificate, and the port is any.
func TestAddressWithoutName(t *testing.T) {
	server, roots := newServer(t)
	for name, way := range map[string]*Way{"nil": nil, "direct": New(nil)} {
		if err := greets(t, way, server, roots); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := greets(t, New(nil), server, x509.NewCertPool()); err == nil {
		t.Error("a server of unknown roots was believed")
	}
}

func TestThroughAProxy(t *testing.T) {
	server, roots := newServer(t)
	const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
	const basic = "Proxy-Authenticate: Negotiate, Basic realm=\"x\"\r\n"
	guard := func(r *http.Request) string {
		if r.Method != http.MethodConnect || r.Host != server || r.RequestURI != server {
			return "HTTP/1.1 400 Bad Request\r\n\r\n"
		}
		// What is right is "gateway-7:s3:cret" in base64.
		if r.Header.Get("Proxy-Authorization") != "Basic Z2F0ZXdheS03OnMzOmNyZXQ=" {
			return "HTTP/1.1 407 Proxy Authentication Required\r\n" + basic + "\r\n"
		}
		return ok
	}
	always := func(text string) func(*http.Request) string { return func(*http.Request) string { return text } }
	right := credentialsFile(t, "gateway-7:s3:cret\n", 0o600)
	for name, c := range map[string]struct {
		answer      func(*http.Request) string
		credentials string
		want        string // in the error; "": it works
	}{
		"open":              {always(ok), "", ""},
		"with credentials":  {guard, right, ""},
		"without":           {guard, "", `it asks for user and password ("407 Proxy Authentication Required")`},
		"wrong":             {guard, credentialsFile(t, "gateway-7:other", 0o600), "it does not accept user and password"},
		"world-readable":    {guard, credentialsFile(t, "gateway-7:s3:cret", 0o644), "has mode 0644, so others than its owner may read it"},
		"group-readable":    {guard, credentialsFile(t, "gateway-7:s3:cret", 0o640), "has mode 0640"},
		"no file":           {guard, "/nonexistent/credentials", "no such file"},
		"a directory":       {guard, t.TempDir(), "is no file"},
		"no colon":          {guard, credentialsFile(t, "s3cret", 0o600), "does not hold one line user:password"},
		"two lines":         {guard, credentialsFile(t, "a:b\r\nX-Header: c", 0o600), "does not hold one line user:password"},
		"long":              {guard, credentialsFile(t, "a:"+strings.Repeat("b", 2000), 0o600), "does not hold one line user:password"},
		"another scheme":    {always("HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\n\r\n"), right, "a kind of authentication that this agent does not speak"},
		"forbidden":         {always("HTTP/1.1 403 Forbidden\r\n\r\n"), right, "it does not let connections to " + server + " through"},
		"server is off":     {always("HTTP/1.1 502 Bad Gateway\r\n\r\n"), right, "it cannot reach " + server},
		"redirect":          {always("HTTP/1.1 302 Found\r\nLocation: http://login\r\n\r\n"), right, `it answers "302 Found" to CONNECT`},
		"escape characters": {always("HTTP/1.1 500 \x1b[2J\r\n\r\n"), right, `"500 \x1b[2J"`},
		"no HTTP":           {always("SSH-2.0-OpenSSH\r\n"), right, "what answers there is no HTTP proxy"},
		"endless header":    {always("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 20<<10)), right, "what answers there is no HTTP proxy"},
		"it speaks first":   {always(ok + "\x16\x03\x03"), right, "bytes follow its answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, err := ParseProxy("http://"+answering(t, c.answer), c.credentials)
			if err != nil {
				t.Fatal(err)
			}
			err = greets(t, New(proxy), server, roots)
			var refused *ProxyError
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (!errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) || refused.Mend == ""):
				t.Errorf("%v\nwant %q", err, c.want)
			case err != nil && (strings.Contains(err.Error(), "cret") || strings.Contains(err.Error(), "Z2F0")):
				t.Errorf("the password is in the error: %v", err)
			}
		})
	}
}

func TestSilentAndAbsentProxies(t *testing.T) {
	silent, err := ParseProxy("http://"+answering(t, func(*http.Request) string { return "" }), "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err = New(silent).Connect(ctx, "192.0.2.1:8883")
	if err == nil || !strings.Contains(err.Error(), "it does not answer within") || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 10*time.Second {
		t.Errorf("silent: %v", err)
	}
	absent := &Proxy{Address: "127.0.0.1:1"}
	if _, err := New(absent).Connect(t.Context(), "192.0.2.1:8883"); err == nil || !strings.Contains(err.Error(), "proxy 127.0.0.1:1: there is no connection to it") {
		t.Errorf("absent: %v", err)
	}
}

func TestParseProxy(t *testing.T) {
	for text, want := range map[string]string{
		"http://proxy.example:3128": "", "http://10.0.0.1:8080/": "", "http://[2001:db8::1]:3128": "",
		"proxy.example:3128": "expected http://host:port", "": "expected http://host:port", "http://proxy.example": "port is missing", "http://:3128": "host or port",
		"https://proxy.example:3128": `scheme "https"`, "socks5://proxy.example:1080": `scheme "socks5"`, "http://gateway:s3cret@proxy.example:3128": "do not belong",
		"http://proxy.example:3128/wpad.dat": "expected http://host:port", "http://gateway:s3cret@%zz": "expected http://host:port",
	} {
		_, err := ParseProxy(text, "")
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ParseProxy("http://proxy.example:3128", "relative"); err == nil {
		t.Error("a relative path was taken")
	}
}

// An address that fails comes last for some minutes, longer each time, and first again once it has been good.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, servers := New(nil), []string{"a:1", "b:1", "c:1"}
		order := func(want ...string) {
			t.Helper()
			if got := w.Order(servers); !slices.Equal(got, want) {
				t.Errorf("order %v, want %v", got, want)
			}
		}
		order("a:1", "b:1", "c:1")
		w.Failed("a:1", errors.New("off"))
		order("b:1", "c:1", "a:1")
		if got := w.Better(servers, "b:1"); len(got) != 0 {
			t.Errorf("worth another try at once: %v", got)
		}
		time.Sleep(firstRest)
		order("a:1", "b:1", "c:1")
		if got := w.Better(servers, "b:1"); !slices.Equal(got, []string{"a:1"}) {
			t.Errorf("worth another try: %v", got)
		}
		if got := append(w.Better(servers, "a:1"), w.Better(servers, "gone:1")...); len(got) != 0 {
			t.Errorf("before the first: %v", got)
		}
		w.Failed("a:1", errors.New("still off"))
		time.Sleep(firstRest + firstRest/3)
		order("b:1", "c:1", "a:1")
		for range 20 { // for want of another it is tried again and again
			w.Failed("a:1", errors.New("off"))
		}
		time.Sleep(firstRest)
		order("a:1", "b:1", "c:1")
		if at, err := w.Fault("a:1"); err == nil || at.IsZero() {
			t.Error("its fault is not known any more")
		}
		w.Worked("a:1")
		if _, err := w.Fault("a:1"); err != nil {
			t.Error(err)
		}
		for _, s := range servers {
			w.Failed(s, errors.New("off"))
		}
		order("a:1", "b:1", "c:1")

		var tried []string
		err := w.Try(t.Context(), servers, time.Minute, func(ctx context.Context, server string) error {
			tried = append(tried, server)
			<-ctx.Done()
			return ctx.Err()
		})
		if len(tried) != 3 || err == nil || !strings.Contains(err.Error(), "server c:1: ") {
			t.Errorf("%v: %v", tried, err)
		}
	})
}

// Who gives up has learnt nothing of the server.
func TestCalledBack(t *testing.T) {
	silent, err := ParseProxy("http://"+answering(t, func(*http.Request) string { return "" }), "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	w := New(silent)
	if _, err := w.Secure(ctx, "192.0.2.1:8883", &tls.Config{}); err == nil {
		t.Error("a silent proxy let it through")
	}
	if _, err := w.Fault("192.0.2.1:8883"); err != nil {
		t.Error(err)
	}
}

func FuzzReadAnswer(f *testing.F) {
	for _, seed := range []string{"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 407 x\r\nProxy-Authenticate: Basic\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nx", "HTTP/1.1 99999 \x00\r\n\r\n", ""} {
		f.Add([]byte(seed))
	}
	p := &Proxy{Address: "proxy:1"}
	f.Fuzz(func(t *testing.T, data []byte) {
		answer, err := readAnswer(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		found, mend := p.judge(answer, "server:1")
		if (found == "") != (answer.StatusCode/100 == 2) || (found == "") != (mend == "") {
			t.Errorf("%q: %q, %q", data, found, mend)
		}
		for _, r := range found {
			if r < ' ' || r == 0x7f {
				t.Errorf("%q is not printable", found)
			}
		}
	})
}

func FuzzParseCredentials(f *testing.F) {
	for _, seed := range []string{"user:password\n", "user:pass:word", ":", "a:\r\nb", "user:\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		line, err := parseCredentials(data, "file")
		if err == nil && (strings.ContainsAny(string(line), "\r\n") || !strings.Contains(string(line), ":") || len(line) > maxCredentials) {
			t.Errorf("%q was taken", data)
		}
	})
}
