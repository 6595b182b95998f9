package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/certtest"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// authority is a CA of the hospital's biomedical engineers.
type authority struct {
	*certtest.Authority
	t testing.TB
}

func newAuthority(t testing.TB) *authority {
	return &authority{certtest.New(t, "devices", -10000*time.Hour, 10000*time.Hour), t}
}

// device is a certificate for a name that begins and ends so long from now.
func (a *authority) device(name string, from, to time.Duration) tls.Certificate {
	return a.Issue(&x509.Certificate{Subject: pkix.Name{CommonName: "monitor"}, DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, from, to)
}

// gateway writes the certificate that devices see, its key and the CA into a directory.
func (a *authority) gateway(dir string, to time.Duration) TLS {
	cert, key := a.Files(a.Issue(&x509.Certificate{Subject: pkix.Name{CommonName: "gw"}, DNSNames: []string{"gw-1.ward.example"}}, -9000*time.Hour, to))
	c := TLS{Certificate: filepath.Join(dir, "devices.pem"), Key: filepath.Join(dir, "devices.key"), ClientCA: filepath.Join(dir, "ca.pem")}
	for path, data := range map[string][]byte{
		c.Certificate: cert,
		c.Key:         key,
		c.ClientCA:    a.PEM(),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return c
}

// client is a device's side: it trusts the authority, and shows what it is given.
func (a *authority) client(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: a.Pool(), ServerName: "gw-1.ward.example", Certificates: certs}
}

// exchange sends one message over TLS and gives the answer, or why there is none.
func exchange(t *testing.T, s *MLLP, conf *tls.Config) (string, error) {
	t.Helper()
	raw, err := net.DialTimeout("tcp", s.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	c := tls.Client(raw, conf)
	if err := hl7.WriteFrame(c, oru("1")); err != nil {
		return "", err
	}
	msg, err := hl7.NewReader(c, telemetry.MaxMessage).Next()
	if err != nil {
		return "", err
	}
	_, msa, _ := strings.Cut(strings.TrimSuffix(string(msg), "\r"), "\r")
	return msa, nil
}

func TestTLS(t *testing.T) {
	a, foreign := newAuthority(t), newAuthority(t)
	c := a.gateway(t.TempDir(), time.Hour)
	c.Allow = []string{"bed-7.ward.example", "bed-8.ward.example"}
	got := make(chan Delivery, 1)
	s, _ := start(t, Config{
		TLS: &c, Bindings: []Binding{{Certificate: "bed-7.ward.example", Bed: "ICU-7", ID: "icu-7"}},
		Accept: func(_ context.Context, d Delivery) error { got <- d; return nil },
	})
	good := a.device("bed-7.ward.example", -time.Hour, time.Hour)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conf := a.client(good)
		conf.MinVersion, conf.MaxVersion = version, version
		if answer, err := exchange(t, s, conf); answer != "MSA|AA|1" {
			t.Fatalf("%x: %q, %v", version, answer, err)
		}
		if d := <-got; d.Source != "icu-7" || d.Message.Bed != "ICU-7" {
			t.Errorf("%+v", d)
		}
	}
	if answer, err := exchange(t, s, a.client(a.device("bed-8.ward.example", -time.Hour, time.Hour))); answer != "MSA|AA|1" {
		t.Fatalf("the other name: %q, %v", answer, err)
	}
	<-got
	old := a.client(good)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	cbc := a.client(good)
	cbc.MaxVersion, cbc.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
	for i, c := range []struct {
		conf    *tls.Config
		reason  string
		expired uint64
	}{
		{a.client(), "showed no certificate", 0},
		{a.client(foreign.device("bed-7.ward.example", -time.Hour, time.Hour)), "of no CA", 0},
		{a.client(a.device("bed-9.ward.example", -time.Hour, time.Hour)), "tls.allow", 0},
		{a.client(a.device("bed-7.ward.example", -2*time.Hour, -time.Hour)), "ended or not begun", 1},
		{a.client(a.device("bed-7.ward.example", time.Hour, 2*time.Hour)), "ended or not begun", 2},
		{old, "no common version", 2},
		{cbc, "no common version", 2},
	} {
		if answer, err := exchange(t, s, c.conf); err == nil {
			t.Errorf("%s: answered %q", c.reason, answer)
		}
		eventually(t, "a refusal is not counted", func() bool { return s.Stats().TLS.Refused == uint64(i+1) })
		if st := s.Stats().TLS; !strings.Contains(st.Reason, c.reason) || st.Expired != c.expired || st.LastRefused.IsZero() {
			t.Errorf("want %q, %d expired: %+v", c.reason, c.expired, st)
		}
	}
	d := dial(t, s)
	d.send(frame(oru("1")))
	if rest := d.end(); strings.Contains(rest, "MSA") {
		t.Errorf("a device without TLS is answered %q", rest)
	}
	eventually(t, "a refusal is not counted", func() bool { return s.Stats().TLS.Refused == 8 })
	if st := s.Stats(); st.TLS.Reason != "the device does not speak TLS" || !st.TLS.ClientCerts || st.TLS.NotAfter.IsZero() || st.Bound[0].Received != 2 || st.Received != 1 {
		t.Errorf("%+v %+v", st, st.TLS)
	}
}

// end reads to the connection's end, which may be a reset.
func (d device) end() string {
	d.Helper()
	_ = d.SetReadDeadline(time.Now().Add(patience))
	var b [4096]byte
	var all strings.Builder
	for {
		n, err := d.Read(b[:])
		all.Write(b[:n])
		if err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				d.Fatal("the connection is still open")
			}
			return all.String()
		}
	}
}

// Whoever opens a connection and does not speak, or leaves within the handshake, has its place no longer than the handshake may take.
func TestHandshakeLeftOpen(t *testing.T) {
	a := newAuthority(t)
	c := a.gateway(t.TempDir(), time.Hour)
	s, stop := start(t, Config{TLS: &c, Accept: take})
	dial(t, s).send([]byte{0x16, 3, 1})
	cut := dial(t, s)
	cut.send([]byte{0x16, 3, 1, 1})
	cut.Close()
	eventually(t, "who leaves keeps a place", func() bool { return s.Stats().Connections == 1 })
	stop() // and being told to stop does not wait for the other
	eventually(t, "who waits is not closed", func() bool { return s.Stats().Connections == 0 })
}

// The files are read anew once they are others, and what was read before goes on where they cannot be used.
func TestTLSFiles(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	c := a.gateway(dir, time.Hour)
	s, _ := start(t, Config{TLS: &c, Accept: take})
	conf := func() *tls.Config { return a.client(a.device("m", -time.Hour, time.Hour)) }
	if answer, err := exchange(t, s, conf()); err != nil {
		t.Fatal(answer, err)
	}
	first := s.Stats().TLS.NotAfter
	a.gateway(dir, 2*time.Hour)
	touch(t, time.Minute, c.Certificate, c.Key)
	if answer, err := exchange(t, s, conf()); err != nil {
		t.Fatal(answer, err)
	}
	if st := s.Stats().TLS; !st.NotAfter.After(first) || st.Trouble != "" {
		t.Errorf("replaced files are not read: %+v", st)
	}
	for name, harm := range map[string]struct {
		do    func()
		tells string
	}{
		"mode":   {func() { chmod(t, c.Key, 0o644) }, "chmod 600 " + c.Key},
		"gone":   {func() { remove(t, c.Certificate) }, "put the file there"},
		"torn":   {func() { write(t, c.Certificate, "-----BEGIN CERTIFICATE-----\nMII") }, "write both again"},
		"no CA":  {func() { write(t, c.ClientCA, "nothing") }, "tls.client_ca: " + c.ClientCA},
		"no key": {func() { write(t, c.Key, string(a.PEM())) }, "write both again"},
		"folder": {func() { remove(t, c.Key); mkdir(t, c.Key) }, "no regular file"},
	} {
		harm.do()
		touch(t, 2*time.Minute, c.Certificate, c.Key, c.ClientCA)
		if answer, err := exchange(t, s, conf()); err != nil {
			t.Errorf("%s: what was read before does not go on: %q, %v", name, answer, err)
		}
		if st := s.Stats(); !strings.Contains(st.TLS.Trouble, harm.tells) || !st.Listening {
			t.Errorf("%s: %+v", name, st.TLS)
		}
		// Nothing begins with such files: no device gets in, none is heard without TLS, and it is said why.
		fresh := c
		s2, _ := start(t, Config{TLS: &fresh, Accept: take})
		if _, err := exchange(t, s2, conf()); err == nil {
			t.Errorf("%s: a source serves without its files", name)
		}
		if st := s2.Stats(); st.Listening || !strings.Contains(st.Trouble, harm.tells) || strings.Contains(st.Trouble, "BEGIN") {
			t.Errorf("%s: %+v", name, st)
		}
		if err := fresh.Examine(time.Now()); err == nil || !strings.Contains(err.Error(), harm.tells) {
			t.Errorf("%s: doctor hears %v", name, err)
		}
		os.RemoveAll(c.Key)
		a.gateway(dir, 2*time.Hour)
		touch(t, 3*time.Minute, c.Certificate, c.Key, c.ClientCA)
		if answer, err := exchange(t, s2, conf()); err != nil || !s2.Stats().Listening {
			t.Errorf("%s: once mended: %q, %v", name, answer, err)
		}
	}
	if err := c.Examine(time.Now().Add(3 * time.Hour)); err == nil || !strings.Contains(err.Error(), "ended at") {
		t.Errorf("a certificate that has ended: %v", err)
	}
}

// A gateway whose clock is not known yet turns no device away for its dates, but for what ended before the floor.
func TestTLSWithoutAClock(t *testing.T) {
	a := newAuthority(t)
	c := a.gateway(t.TempDir(), time.Hour)
	moment := spiffe.Moment{Time: time.Now().Add(-5000 * time.Hour), Floor: true}
	c.Now = func() spiffe.Moment { return moment }
	s, _ := start(t, Config{TLS: &c, Accept: take})
	if answer, err := exchange(t, s, a.client(a.device("m", -time.Hour, time.Hour))); err != nil {
		t.Errorf("%q, %v", answer, err)
	}
	if answer, err := exchange(t, s, a.client(a.device("m", -9000*time.Hour, -6000*time.Hour))); err == nil {
		t.Errorf("ended before the floor: %q", answer)
	}
	eventually(t, "not counted", func() bool { return s.Stats().TLS.Expired == 1 })
}

func touch(t *testing.T, by time.Duration, paths ...string) {
	t.Helper()
	at := time.Now().Add(by)
	for _, p := range paths {
		_ = os.Chtimes(p, at, at) // of a file that is meant to be gone, too
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
