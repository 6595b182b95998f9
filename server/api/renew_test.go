package api_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/ca"
	"wardlink/server/registry"
)

// port serves a handler as one of the server's services over mutual TLS.
func (o *office) port(service string, h http.Handler) (url string) {
	o.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		o.t.Fatal(err)
	}
	cert, err := ca.NewCertificate(o.keys.Issuing, o.keys.IssuingKey, ca.Template{
		ID: spiffe.ID{TrustDomain: domain, Kind: spiffe.Service, Name: service}, Public: key.Public(), Life: time.Hour, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}, time.Now())
	if err != nil {
		o.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(o.keys.Root)
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw, o.keys.Issuing.Raw}, PrivateKey: key}}}
	s.StartTLS()
	o.t.Cleanup(s.Close)
	return s.URL
}

// TestKeeper: it renews what was rotated out by itself, whole and readable by its user alone, and mends what a kill left between two files.
func TestKeeper(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	key, csr, err := client.NewKey("ehr")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := json.Marshal(client.AccessRequest{Name: "ehr", CSR: csr, Scope: &client.Scope{All: true}})
	var grant client.AccessGrant
	if got := o.do(op, "POST", "/v1/access", "application/json", string(body)); got.Code != 200 || json.Unmarshal(got.Body.Bytes(), &grant) != nil {
		t.Fatal(got.Code, got.Body)
	}
	grant.Hospital = o.port("fhir", o.api.Hospital(http.NotFoundHandler()))
	dir := filepath.Join(t.TempDir(), "ehr")
	if err := client.StoreAccess(dir, "ehr", key, grant); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ehr.key"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := client.OpenKeeper(dir, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		t.Helper()
		both := filepath.Join(dir, "ehr.pem")
		pair, err := tls.LoadX509KeyPair(both, both)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(both); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		return ca.Serial(pair.Leaf)
	}
	two := func() string {
		t.Helper()
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ehr.crt"), filepath.Join(dir, "ehr.key"))
		if err != nil {
			t.Fatal(err)
		}
		return ca.Serial(pair.Leaf)
	}
	first := serial()
	if two() != first || k.Due() {
		t.Errorf("the two files are not mended, or a new certificate is due: %t", k.Due())
	}
	k.Look = 10 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	if got := o.do(op, "POST", "/v1/identities/access/ehr/rotate", "", `{"reason":"x","overlap_seconds":3600}`); got.Code != 200 {
		t.Fatal(got.Code, got.Body)
	}
	for serial() == first {
		select {
		case err := <-ended:
			t.Fatalf("the keeper ended: %v", err)
		case <-time.After(10 * time.Millisecond): // the test's own timeout is the only one
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if own, err := k.Own(t.Context()); err != nil || own.Renew || serial() != two() {
		t.Errorf("%+v, %v; expected the new certificate to be in use, in all files", own, err)
	}
	if i, err := o.reg.IdentityOf(t.Context(), spiffe.Access, "ehr"); err != nil || i.Valid != 2 || !i.Used.IsZero() {
		t.Errorf("%+v, %v; expected two certificates that count, and no use", i, err)
	}
}

// operatorsFile makes an operator with a certificate of some age and their file.
func (o *office) operatorsFile(url, name string, role registry.Role, age time.Duration) (path string, pair tls.Certificate) {
	o.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		o.t.Fatal(err)
	}
	cert, err := ca.NewCertificate(o.keys.Issuing, o.keys.IssuingKey, ca.Template{ID: spiffe.ID{TrustDomain: domain, Kind: spiffe.Operator, Name: name}, Public: key.Public(),
		Life: 30 * 24 * time.Hour}, time.Now().Add(-age))
	if err != nil {
		o.t.Fatal(err)
	}
	o.enter(registry.Identity{Kind: spiffe.Operator, Name: name, Role: role}, cert)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		o.t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	path = filepath.Join(o.t.TempDir(), "operator.json")
	data, _ := json.Marshal(client.Credentials{Server: url, TrustDomain: domain, Roots: text("CERTIFICATE", o.keys.Root.Raw),
		Certificate: text("CERTIFICATE", cert.Raw) + text("CERTIFICATE", o.keys.Issuing.Raw), Key: text("PRIVATE KEY", der)})
	if err := os.WriteFile(path, data, 0o600); err != nil {
		o.t.Fatal(err)
	}
	return path, tls.Certificate{Certificate: [][]byte{cert.Raw, o.keys.Issuing.Raw}, PrivateKey: key}
}

// TestOperatorsFileRenewsItself past half of its life, or once it is rotated out, at the next command, and not before.
func TestOperatorsFileRenewsItself(t *testing.T) {
	o := newOffice(t)
	url := o.port("api", o.api)
	admin := o.certificate(spiffe.Operator, "op", domain)
	const day = 24 * time.Hour
	for name, age := range map[string]time.Duration{"fresh": 10 * day, "old": 16 * day, "rotated": 10 * day} {
		path, _ := o.operatorsFile(url, name, registry.Viewer, age)
		if name == "rotated" {
			if got := o.do(admin, "POST", "/v1/identities/operator/rotated/rotate", "", `{"reason":"x","overlap_seconds":3600}`); got.Code != 200 {
				t.Fatal(got.Code, got.Body)
			}
		}
		was, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			c, err := client.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			var s client.Status
			if err := c.Get(t.Context(), "/v1/status", nil, &s); err != nil || !s.Ready {
				t.Errorf("%s: %+v, %v", name, s, err)
			}
		}
		now, err := os.ReadFile(path)
		if err != nil || (string(now) == string(was)) != (name == "fresh") {
			t.Errorf("%s: the file is renewed: %t, %v", name, string(now) != string(was), err)
		}
		want := map[string]int{"fresh": 1, "old": 2, "rotated": 2}[name] // the renewed one is not due again
		if i, err := o.reg.IdentityOf(t.Context(), spiffe.Operator, name); err != nil || i.Valid != want {
			t.Errorf("%s: %+v, %v", name, i, err)
		}
	}
}

// TestWhoIsCutOffWhileTheySend is out all the same: what comes after that is not acted upon.
func TestWhoIsCutOffWhileTheySend(t *testing.T) {
	o := newOffice(t)
	admin := o.certificate(spiffe.Operator, "op", domain)
	_, csr, err := client.NewKey("x")
	if err != nil {
		t.Fatal(err)
	}
	renewal, _ := json.Marshal(client.RenewRequest{CSR: csr})
	for name, row := range map[string]struct{ path, body, act, cut string }{
		"thief": {"/v1/self/renew", string(renewal), "rotate", `{"reason":"stolen","overlap_seconds":0}`},
		"jane":  {"/v1/identities/operator/jane/state", `{"state":"active","reason":"me again"}`, "state", `{"state":"suspended","reason":"stolen"}`},
	} {
		cutOff := sync.OnceFunc(func() { // they were let in, and the body is being read
			if got := o.do(admin, "POST", "/v1/identities/operator/"+name+"/"+row.act, "", row.cut); got.Code != http.StatusOK {
				t.Error(got.Code, got.Body)
			}
		})
		body := strings.NewReader(row.body)
		r := httptest.NewRequest("POST", row.path, readerFunc(func(b []byte) (int, error) {
			cutOff()
			return body.Read(b)
		}))
		r.TLS = o.certificate(spiffe.Operator, name, domain)
		w := httptest.NewRecorder()
		o.api.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: answered %d: %s", name, w.Code, w.Body)
		}
		i, err := o.reg.IdentityOf(t.Context(), spiffe.Operator, name)
		if err != nil || name == "thief" && i.Valid != 0 || name == "jane" && i.State != registry.Suspended {
			t.Errorf("%s: %+v, %v", name, i, err)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
