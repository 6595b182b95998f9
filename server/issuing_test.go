package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/agent"
	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/internal/spiffe"
	"wardlink/internal/swtpm"
	"wardlink/server/alerts"
	"wardlink/server/ca"
	"wardlink/server/ingest"
	"wardlink/server/keys"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
)

// site is a whole server that is started and stopped, and one gateway with its TPM, whose agent sleeps and wakes.
type site struct {
	t          *testing.T
	base, dir  string
	passphrase string
	server     *Server
	log        lockedLog
	tpm        string
	cfg        agent.Config
}

func newSite(t *testing.T) *site {
	t.Helper()
	base, err := os.MkdirTemp("", "wls") // short enough for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, base: base, dir: filepath.Join(base, "s"), passphrase: keys.NewPassphrase()}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.log.String())
		}
		os.RemoveAll(base)
	})
	c := DefaultConfig()
	c.TrustDomain, c.Names = "ward.example", []string{"localhost", "127.0.0.1"}
	c.Gateways, c.Hospital, c.Operators = freeAddress(t), freeAddress(t), freeAddress(t)
	s.must(Init(t.Context(), InitOptions{Dir: s.dir, Config: c, Passphrase: s.passphrase, Operator: "operator"}))
	factory, err := swtpm.NewFactory(filepath.Join(base, "f"))
	s.must(err)
	s.must(factory.Make(t.Context(), filepath.Join(base, "tpm")))
	device, err := swtpm.Start(context.Background(), filepath.Join(base, "tpm"), filepath.Join(base, "t"))
	s.must(err)
	t.Cleanup(device.Stop)
	s.tpm = "swtpm:" + device.Socket
	return s
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// start runs the server until stop.
func (s *site) start() (stop func()) {
	s.t.Helper()
	srv, err := New(s.dir, slog.New(slog.NewTextHandler(&s.log, nil)).With("side", "server"))
	s.must(err)
	s.server = srv
	return (&ward{t: s.t}).service("server", srv.Run)
}

// wake runs the gateway's agent until sleep.
func (s *site) wake() (sleep func()) {
	s.t.Helper()
	a, err := agent.New(s.cfg, slog.New(slog.NewTextHandler(&s.log, nil)).With("side", "gateway"))
	s.must(err)
	return (&ward{t: s.t}).service("agent", a.Run)
}

// enter puts the gateway into the registry by its TPM.
func (s *site) enter() {
	s.t.Helper()
	dev, err := tpm.Open(s.t.Context(), s.tpm)
	s.must(err)
	defer dev.Close()
	ek, err := dev.EK(s.t.Context())
	s.must(err)
	_, err = s.server.registry.Import(s.t.Context(), audit.Actor{ID: "spiffe://ward.example/operator/operator"}, "", []registry.Gateway{{ID: "icu-7", EKs: [][32]byte{ek.Hash}}})
	s.must(err)
}

// kit gives the gateway what it is to trust.
func (s *site) kit() {
	s.t.Helper()
	srv := s.server
	kit, err := enroll.Kit{
		TrustDomain: srv.cfg.TrustDomain, Servers: []string{srv.cfg.Gateways}, Roots: []*x509.Certificate{srv.keys.Root}, RecordsKey: srv.keys.Records.Public(),
		ConfigKey: srv.configPublic(), LogKey: srv.keys.LogVerifier,
	}.Marshal()
	s.must(err)
	path := filepath.Join(s.base, "kit.json")
	s.must(os.WriteFile(path, kit, 0o600))
	s.cfg, err = agent.ParseConfig(fmt.Appendf(nil, "kit: %s\nstate: %s\ntpm: %s\nreport_every: 1s\nsources: [{id: bed-1, mllp: %q}]\n",
		path, filepath.Join(s.base, "a"), s.tpm, freeAddress(s.t)))
	s.must(err)
}

func (s *site) eventually(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("%s did not happen", what)
		}
	}
}

// session waits for the gateway's session of which is says yes.
func (s *site) session(what string, is func(ingest.SessionInfo) bool) {
	s.t.Helper()
	s.eventually("a session "+what, func() bool {
		for _, one := range s.server.ingest.Sessions() {
			if one.Gateway == "icu-7" && is(one) {
				return true
			}
		}
		return false
	})
}

// identity is the gateway's certificate with its key, while the agent sleeps.
func (s *site) identity() *enroll.Identity {
	s.t.Helper()
	dev, err := tpm.Open(s.t.Context(), s.tpm)
	s.must(err)
	s.t.Cleanup(func() { dev.Close() })
	e, err := enroll.New(enroll.Config{TPM: dev, Dir: filepath.Join(s.base, "a", "identity"), Attestation: "https://unused", Directory: "https://unused",
		HTTP: &http.Client{}, Log: slog.New(slog.DiscardHandler)})
	s.must(err)
	id, err := e.Load(s.t.Context())
	s.must(err)
	return id
}

// connack says how the server answers a CONNECT under that certificate, and gives its own certificate; -1 when it closes.
func (s *site) connack(cert tls.Certificate) (int, *x509.Certificate) {
	s.t.Helper()
	conf := spiffe.ServerTLS(s.server.roots(), spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Service, Name: "ingest"}, "mqtt")
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	conn, err := tls.Dial("tcp", s.server.cfg.Gateways, conf)
	if err != nil {
		return -1, nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = conn.Write([]byte("\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05icu-7"))
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return -1, nil
	}
	return int(answer[3]), conn.ConnectionState().PeerCertificates[0]
}

// certify makes the gateway's certificate anew: issued by that CA, from and until then, and entered in the registry as every one is.
func (s *site) certify(id *enroll.Identity, by *x509.Certificate, key crypto.Signer, from, until time.Time) {
	s.t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	s.must(err)
	uri, err := url.Parse(id.ID.String())
	s.must(err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: id.Gateway}, NotBefore: from, NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, URIs: []*url.URL{uri},
	}, by, id.Signer().Public(), key)
	s.must(err)
	leaf, err := x509.ParseCertificate(der)
	s.must(err)
	s.must(os.WriteFile(filepath.Join(s.base, "a", "identity", "identity.pem"), pemChain([]*x509.Certificate{leaf, by}), 0o600))
	entry, err := s.server.registry.Get(s.t.Context(), id.Gateway)
	s.must(err)
	s.must(s.server.registry.AddKey(s.t.Context(), registry.Key{
		Gateway: id.Gateway, EK: entry.EKs[0], SPKI: sha256.Sum256(leaf.RawSubjectPublicKeyInfo), Public: leaf.RawSubjectPublicKeyInfo, Serial: ca.Serial(leaf),
		NotBefore: from, NotAfter: until,
	}))
}

// outlived makes the issuing CA one that has ended.
func (s *site) outlived() (*x509.Certificate, *ecdsa.PrivateKey) {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "recovery.json"))
	s.must(err)
	recovered, err := keys.OpenRecovery(data, s.passphrase)
	s.must(err)
	rootKey, err := x509.ParsePKCS8PrivateKey(recovered.Root)
	s.must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	template := *s.server.keys.Issuing
	template.NotAfter = time.Now().Add(-time.Hour)
	template.NotBefore = s.server.keys.Root.NotBefore.Add(-400 * 24 * time.Hour)
	template.SerialNumber = big.NewInt(4711)
	template.SubjectKeyId = nil
	der, err := x509.CreateCertificate(rand.Reader, &template, s.server.keys.Root, key.Public(), rootKey)
	s.must(err)
	cert, err := x509.ParseCertificate(der)
	s.must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	s.must(err)
	s.must(os.WriteFile(filepath.Join(s.dir, "public/issuing.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o644))
	s.must(os.WriteFile(filepath.Join(s.dir, "keys/ca/issuing.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return cert, key
}

// TestLifeOfTheCA: an issuing CA rotates under a gateway that is connected, and under one that sleeps until both its certificate and the
// CA of it have ended; and while the CA is down, with the server started again meanwhile, the gateway goes on.
func TestLifeOfTheCA(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	stop := s.start()
	s.kit()
	s.enter()
	sleep := s.wake()
	s.session("at first", func(i ingest.SessionInfo) bool { return !i.Grace })
	s.withoutAList()
	sleep()
	former := s.server.ca.Issuer()

	// Rotated while the server runs: what the former CA issued is good, and the server shows a certificate of the new one.
	next, err := PrepareIssuing(t.Context(), s.dir, s.passphrase)
	s.must(err)
	s.server.lookAfterCA(t.Context())
	if !s.server.ca.Issuer().Equal(next) {
		t.Fatal("the running server did not take the next issuing CA up")
	}
	id := s.identity()
	if id.Certificate.Leaf.CheckSignatureFrom(former) != nil {
		t.Fatal("the gateway's certificate is not of the former CA")
	}
	if code, shown := s.connack(id.Certificate); code != 0 || shown.CheckSignatureFrom(next) != nil {
		t.Fatalf("a certificate of the former CA: CONNACK %d", code)
	}

	// It sleeps through everything: its certificate has ended, and so has the CA that issued it.
	stop()
	old, oldKey := s.outlived()
	s.certifyStopped(id, old, oldKey, old.NotAfter.Add(-24*time.Hour), old.NotAfter)
	stop = s.start()
	s.eventually("the CA unwell", func() bool { return !s.server.ca.Health().Well })
	if code, _ := s.connack(id.Certificate); code != -1 {
		t.Fatalf("a server whose CA has ended answers %d", code)
	}
	_, err = PrepareIssuing(t.Context(), s.dir, s.passphrase)
	s.must(err)
	s.server.lookAfterCA(t.Context())
	if h := s.server.ca.Health(); !h.Well {
		t.Fatalf("after the rotation: %+v", h)
	}
	if code, _ := s.connack(s.identity().Certificate); code != -1 {
		t.Fatalf("a certificate that has ended, with a CA that is well: CONNACK %d", code)
	}
	sleep = s.wake()
	s.session("by the TPM alone", func(i ingest.SessionInfo) bool { return !i.Grace && time.Until(i.NotAfter) > 20*time.Hour })
	sleep()

	s.graceThroughARestart(stop)
}

// withoutAList: while no list of revoked certificates can be had the gateway is admitted, cut off when it is revoked, and admitted when that is taken back.
func (s *site) withoutAList() {
	t := s.t
	t.Helper()
	list := func() int {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.server.roots()}, DisableKeepAlives: true}}
		answer, err := client.Get("https://" + s.server.cfg.Gateways + ca.ListPath)
		s.must(err)
		defer answer.Body.Close()
		data, err := io.ReadAll(answer.Body)
		s.must(err)
		if answer.StatusCode != http.StatusOK {
			return -1
		}
		l, err := x509.ParseRevocationList(data)
		s.must(err)
		s.must(l.CheckSignatureFrom(s.server.ca.Issuer()))
		return len(l.RevokedCertificateEntries)
	}
	rename := func(from, to string) {
		s.must(s.server.db.Write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec("ALTER TABLE " + from + " RENAME TO " + to)
			return err
		}))
	}
	rename("retired_eks", "retired_eks_away")
	if n := list(); n != -1 {
		t.Fatalf("a list of %d although it cannot be made", n)
	}
	who := audit.Actor{ID: "spiffe://ward.example/operator/operator"}
	_, _, err := s.server.registry.Revoke(t.Context(), who, "", "icu-7", "stolen")
	s.must(err)
	s.eventually("the end of the revoked gateway's session", func() bool { return len(s.server.ingest.Sessions()) == 0 })
	_, err = s.server.registry.Resume(t.Context(), who, "", "icu-7", "it was found")
	s.must(err)
	s.session("without a list", func(ingest.SessionInfo) bool { return true })
	rename("retired_eks_away", "retired_eks")
	if n := list(); n != 0 {
		t.Errorf("a list of %d; expected an empty one", n)
	}
}

// certifyStopped is certify while the server is stopped.
func (s *site) certifyStopped(id *enroll.Identity, by *x509.Certificate, key crypto.Signer, from, until time.Time) {
	s.t.Helper()
	srv, err := New(s.dir, slog.New(slog.DiscardHandler))
	s.must(err)
	s.server = srv
	s.certify(id, by, key, from, until)
	s.must(srv.close())
}

// graceThroughARestart breaks the CA's tables, and has the server and the gateway start in that state.
func (s *site) graceThroughARestart(stop func()) {
	t := s.t
	stop()
	k, err := keys.Open(s.dir)
	s.must(err)
	// Root and CA are as old as this test: the certificate must have ended within their lives.
	s.certifyStopped(s.identity(), k.Issuing, k.IssuingKey, time.Now().Add(-30*time.Second), time.Now().Add(-2*time.Second))
	rename := func(db *sqldb.DB, from, to string) {
		s.must(db.Write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec("ALTER TABLE " + from + " RENAME TO " + to)
			return err
		}))
	}
	db, err := sqldb.Open(databaseFile(s.dir), migrations()...)
	s.must(err)
	rename(db, "ca_state", "ca_state_away")
	s.must(db.Close())
	stop = s.start()
	defer stop()
	s.eventually("the CA unwell", func() bool { return !s.server.ca.Health().Well })
	sleep := s.wake()
	defer sleep()
	s.session("under grace", func(i ingest.SessionInfo) bool {
		return i.Grace && time.Until(i.NotAfter) > 70*time.Hour && time.Until(i.NotAfter) < 72*time.Hour
	})
	s.eventually("the alert of a CA that cannot issue", func() bool { return s.server.alerts.Open(alerts.CAUnwell, "server") })
	if st, err := s.server.status(t.Context()); err != nil || st.CA == "" || st.Grace != 1 {
		t.Errorf("status: %+v, %v", st, err)
	}
	if terms, err := s.server.watchedTerms(t.Context()); err != nil || len(terms) < 7 { // root, two CAs, an operator, three of its own
		t.Errorf("%d terms are watched: %v", len(terms), err)
	}
	if asked := strings.Count(s.log.String(), "the CA's tables cannot be opened"); asked > 20 {
		t.Errorf("the agent asked %d times for a certificate", asked)
	}
	// Mended, it renews by itself.
	rename(s.server.db, "ca_state_away", "ca_state")
	s.server.lookAfterCA(t.Context())
	if h := s.server.ca.Health(); !h.Well {
		t.Fatalf("after the mend: %+v", h)
	}
	s.eventually("a certificate after the mend", func() bool {
		list, err := s.server.registry.Certificates(t.Context())
		return err == nil && len(list) == 1 && time.Until(list[0].NotAfter) > 20*time.Hour
	})
}

// TestFormerCAStoreIsRemoved: what servers of before kept beside the database goes, damaged or not, and nothing that is not theirs.
func TestFormerCAStoreIsRemoved(t *testing.T) {
	s := &site{t: t, dir: filepath.Join(t.TempDir(), "s"), passphrase: keys.NewPassphrase()}
	c := DefaultConfig()
	c.TrustDomain, c.Names = "ward.example", []string{"localhost"}
	c.Gateways, c.Hospital, c.Operators = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	s.must(Init(t.Context(), InitOptions{Dir: s.dir, Config: c, Passphrase: s.passphrase, Operator: "operator"}))
	start := func(files ...string) (left []string) {
		t.Helper()
		s.must(os.MkdirAll(filepath.Join(s.dir, "ca"), 0o700))
		for _, f := range files {
			s.must(os.WriteFile(filepath.Join(s.dir, "ca", f), []byte(strings.Repeat("garbage ", 4096)), 0o600))
		}
		srv, err := New(s.dir, slog.New(slog.NewTextHandler(&s.log, nil)))
		s.must(err)
		if h := srv.ca.Probe(t.Context()); !h.Well {
			t.Errorf("%+v\n%s", h, s.log.String())
		}
		s.must(srv.close())
		left, err = filepath.Glob(filepath.Join(s.dir, "ca*", "*"))
		s.must(err)
		return left
	}
	if left := start("acme.db", "acme.db.damaged", "notes.txt"); len(left) != 1 || !strings.Contains(s.log.String(), "not wholly removed") {
		t.Errorf("left: %v, expected somebody's notes and a line\n%s", left, s.log.String())
	}
	s.must(os.Remove(filepath.Join(s.dir, "ca", "notes.txt")))
	if start("acme.db"); !strings.Contains(s.log.String(), "the CA's former store is removed") {
		t.Error(s.log.String())
	}
	if _, err := os.Stat(filepath.Join(s.dir, "ca")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestTermsListEverything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	c := DefaultConfig()
	c.TrustDomain, c.Names = "ward.example", []string{"localhost"}
	pass := keys.NewPassphrase()
	if err := Init(t.Context(), InitOptions{Dir: dir, Config: c, Passphrase: pass, Operator: "jane"}); err != nil {
		t.Fatal(err)
	}
	if _, err := PrepareIssuing(t.Context(), dir, pass); err != nil {
		t.Fatal(err)
	}
	if _, err := PrepareIssuing(t.Context(), dir, pass); !errors.Is(err, keys.ErrPrepared) {
		t.Errorf("prepared twice: %v", err)
	}
	terms, err := Terms(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, term := range terms {
		got[term.What+" "+term.Name] = term.State
		if term.Renewal == "" {
			t.Errorf("%s: nobody renews it", term.What)
		}
	}
	for what, state := range map[string]string{
		"root ward.example": "ok", "issuing CA ward.example": "ok", "next issuing CA ward.example": "", "attestation CA ward.example": "ok",
		"operator jane": "ok", "log key ward.example/log/1": "", "server ingest, fhir, api": "", "gateways all": "",
	} {
		if s, ok := got[what]; !ok || s != state {
			t.Errorf("%s: %q, listed %t", what, s, ok)
		}
	}
	now := time.Now()
	root, issuing := terms[0], terms[1]
	for _, tc := range []struct {
		term  Term
		at    time.Duration
		state string
	}{
		{issuing, ca.IssuingLife/2 - time.Hour, "ok"}, {issuing, ca.IssuingLife/2 + time.Hour, "due"}, {issuing, ca.IssuingLife*3/4 + time.Hour, "late"},
		{issuing, ca.IssuingLife + time.Hour, "ended"}, {root, ca.RootLife/2 - time.Hour, "ok"}, {root, ca.RootLife/2 + time.Hour, "due"}, {root, ca.RootLife*3/4 + time.Hour, "late"},
	} {
		if got := tc.term.judged(now.Add(tc.at)).State; got != tc.state {
			t.Errorf("%s after %s: %s, expected %s", tc.term.What, tc.at, got, tc.state)
		}
	}
}

// The hospital's own certificate is read again when its files have changed, and half of a pair changes nothing.
func TestHospitalCertificateIsReadAgain(t *testing.T) {
	dir, tr := t.TempDir(), newTrust(t)
	s := &Server{log: slog.New(slog.DiscardHandler)}
	s.cfg.HospitalTLS.Cert, s.cfg.HospitalTLS.Key = filepath.Join(dir, "c"), filepath.Join(dir, "k")
	write := func(cert tls.Certificate, key bool) {
		t.Helper()
		der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.cfg.HospitalTLS.Cert, pemChain([]*x509.Certificate{cert.Leaf}), 0o600); err != nil {
			t.Fatal(err)
		}
		if key {
			if err := os.WriteFile(s.cfg.HospitalTLS.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, second := tr.certificate(t, spiffe.Service, "fhir"), tr.certificate(t, spiffe.Service, "fhir")
	write(first, true)
	if err := s.readHospital(); err != nil || !s.hospital.Load().Leaf.Equal(first.Leaf) {
		t.Fatalf("%v", err)
	}
	write(second, false)
	if err := s.readHospital(); err == nil || !s.hospital.Load().Leaf.Equal(first.Leaf) {
		t.Errorf("half of a pair was taken: %v", err)
	}
	write(second, true)
	if err := s.readHospital(); err != nil || !s.hospital.Load().Leaf.Equal(second.Leaf) {
		t.Errorf("%v", err)
	}
}
