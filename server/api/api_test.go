package api_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/verify"
	"wardlink/enroll/wipe"
	"wardlink/internal/spiffe"
	"wardlink/server/alerts"
	"wardlink/server/api"
	"wardlink/server/api/client"
	"wardlink/server/boot"
	"wardlink/server/ca"
	"wardlink/server/ca/acmedb"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/keys"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

const domain = "ward.example"

// office is an API over real stores.
type office struct {
	wall    time.Time // of its clock
	t       *testing.T
	api     *api.API
	configs *api.Configs
	reg     *registry.Registry
	journal *journal.Journal
	keys    *keys.Keys
	alerts  *alerts.Alerts
	outbox  *sqldb.Outbox
	db      *sqldb.DB
	counted counter
	pushed  []string // by configurations and by acts on gateways
}

// counter is what aggregates refusals.
type counter []string

func (c *counter) Add(peer net.Addr, reason string) {
	*c = append(*c, fmt.Sprintf("%v %s", peer, reason))
}

func newOffice(t *testing.T) *office {
	t.Helper()
	dir := t.TempDir()
	o := &office{t: t}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(keys.Create(dir, domain, keys.NewPassphrase(), time.Now()))
	var err error
	o.keys, err = keys.Open(dir)
	check(err)
	jc := journal.Config{Dir: filepath.Join(dir, "journal"), Node: 1, Consumers: []string{"log"}}
	check(journal.Create(jc))
	o.journal, err = journal.Open(jc)
	check(err)
	migrations := slices.Concat(sqldb.OutboxMigrations(), registry.Migrations(), api.Migrations(), records.Migrations(), alerts.Migrations(), acmedb.Migrations())
	db, _ := sqldbtest.New(t, migrations...)
	outbox, err := sqldb.NewOutbox(db, o.journal, nil)
	check(err)
	o.reg, err = registry.New(registry.Config{DB: db, Outbox: outbox})
	check(err)
	log := slog.New(slog.DiscardHandler)
	authority, err := ca.New(ca.Config{
		TrustDomain: domain, DNSNames: []string{"localhost"}, Roots: []*x509.Certificate{o.keys.Root}, Issuing: o.keys.Issuing,
		IssuingKey: o.keys.IssuingKey, Attestation: o.keys.Attestation, AttestationKey: o.keys.AttestationKey,
		DB: db, Registry: noGateways{}, Log: log,
		Events: func(ctx context.Context, ev audit.Event) error { return journal.AppendEvent(ctx, o.journal, ev) },
	})
	check(err)
	o.outbox, o.db = outbox, db
	recs, err := records.New(records.Config{
		DB: db, Outbox: outbox, Journal: o.journal, Registry: o.reg, Key: o.keys.Records, Pseudonym: o.keys.Pseudonym, Log: log,
	})
	check(err)
	o.configs = &api.Configs{DB: db, Outbox: outbox, Registry: o.reg, Key: o.keys.Config, Now: time.Now, States: recs.ConfigStates, Changed: func(ids []string) { o.pushed = append(o.pushed, ids...) }}
	o.alerts, err = alerts.New(alerts.Config{DB: db, Outbox: outbox, NextID: o.journal.NextID, Server: domain, Log: log})
	check(err)
	o.wall = time.Now()
	clock, err := api.OpenClock(api.ClockConfig{Path: filepath.Join(dir, "clock"), Key: o.keys.Config, Log: log, Event: func(audit.Event) {}, Now: func() time.Time { return o.wall }})
	check(err)
	o.api = api.New(api.Config{Clock: clock,
		TrustDomain: domain, Servers: []string{"localhost:8883"}, Root: o.keys.Root, RecordsKey: o.keys.Records.Public(),
		ConfigKey: o.keys.Config.Public().(ed25519.PublicKey), LogDir: filepath.Join(dir, "log"), LogVerifier: o.keys.LogVerifier,
		Registry: o.reg, Journal: o.journal, Refusals: &o.counted, CA: authority, Records: recs, Alerts: o.alerts, Configs: o.configs,
		PatientID: records.NewStore(db, o.keys.Pseudonym).PatientID,
		Seen:      records.NewStore(db, o.keys.Pseudonym).Seen,
		Others: func(context.Context) ([]client.Identity, error) {
			return []client.Identity{{Kind: "server", Name: "log key"}}, nil
		},
		Connections: noConnections{},
		Agents:      records.NewStore(db, o.keys.Pseudonym).Agents,
		Accounts:    records.NewStore(db, o.keys.Pseudonym),
		Status:      func(context.Context) (client.Status, error) { return client.Status{Ready: true}, nil },
		Ready:       func(context.Context) error { return nil },
		Metrics:     http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("metrics are broken") }),
		Log:         log,
		SignOrder:   func(order wipe.Order) ([]byte, error) { return wipe.Sign(order, o.keys.Config) },
	})
	t.Cleanup(func() {
		for _, c := range []func() error{authority.Close, o.journal.Close} {
			if err := c(); err != nil {
				t.Error(err)
			}
		}
	})
	return o
}

// noConnections is an endpoint to which no gateway is connected.
type noConnections struct{}

func (noConnections) Sessions() []ingest.SessionInfo           { return nil }
func (noConnections) Traffic(string) ingest.Traffic            { return ingest.Traffic{} }
func (noConnections) RefusedBatches() map[string]ingest.Parked { return nil }
func (noConnections) Rivals() map[string]ingest.Rival          { return nil }

// noGateways is the registry of a CA that enrols nobody.
type noGateways struct{}

func (noGateways) ByEK(context.Context, [32]byte) (string, error) { return "", ca.ErrUnknown }
func (noGateways) Wait(context.Context, ca.Waiting) error         { return nil }
func (noGateways) Contend(context.Context, ca.Contention) error   { return nil }
func (noGateways) Attested(context.Context, string, *verify.Verified, string, boot.Measurement) error {
	return nil
}
func (noGateways) AddKey(context.Context, ca.Key) error { return nil }

// certificate is a verified chain of the given identity, as the listener hands it on. Our domain's operators are entered, as admins.
func (o *office) certificate(kind spiffe.Kind, name, trustDomain string) *tls.ConnectionState {
	o.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		o.t.Fatal(err)
	}
	cert, err := ca.NewCertificate(o.keys.Issuing, o.keys.IssuingKey, ca.Template{
		ID: spiffe.ID{TrustDomain: trustDomain, Kind: kind, Name: name}, Public: key.Public(), Life: time.Hour,
	}, time.Now())
	if err != nil {
		o.t.Fatal(err)
	}
	if kind == spiffe.Operator && trustDomain == domain {
		o.enter(registry.Identity{Kind: kind, Name: name, Role: registry.Admin}, cert)
	}
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert, o.keys.Issuing}}}
}

// enter enters an identity, unless it is there, and its certificate.
func (o *office) enter(i registry.Identity, cert *x509.Certificate) {
	o.t.Helper()
	now := time.Now()
	if err := o.db.Write(o.t.Context(), func(tx *sql.Tx) error {
		if _, err := registry.AddIdentity(tx, now, "test", i); err != nil {
			return err
		}
		return registry.AddCertificate(tx, now, i.Kind, i.Name, "", registry.IdentityCertificate{
			Serial: ca.Serial(cert), SPKI: sha256.Sum256(cert.RawSubjectPublicKeyInfo), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter})
	}); err != nil {
		o.t.Fatal(err)
	}
}

func (o *office) do(state *tls.ConnectionState, method, path, contentType, body string) *httptest.ResponseRecorder {
	o.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.TLS = state
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	o.api.ServeHTTP(w, r)
	return w
}

// document is a gateway's own configuration.
func (o *office) document(gateway string) ([]byte, error) {
	docs, err := o.configs.Documents(o.t.Context(), gateway)
	if err != nil {
		return nil, err
	}
	return docs[0], nil
}

// events are the types, targets and outcomes in the journal.
func (o *office) events() string {
	o.t.Helper()
	entries, err := o.journal.Read(1, 1000)
	if err != nil {
		o.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			o.t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %s %s", ev.Type, ev.Target, ev.Outcome))
	}
	return strings.Join(out, "\n")
}

func TestOnlyOperators(t *testing.T) {
	o := newOffice(t)
	unverified := o.certificate(spiffe.Operator, "mallory", domain)
	unverified.VerifiedChains = nil
	for name, c := range map[string]struct {
		state *tls.ConnectionState
		want  int
	}{
		"no TLS":                    {nil, 401},
		"no certificate":            {&tls.ConnectionState{}, 401},
		"a chain nobody verified":   {unverified, 401},
		"a service account":         {o.certificate(spiffe.Access, "ehr", domain), 403},
		"a service":                 {o.certificate(spiffe.Service, "ingest", domain), 403},
		"another domain's operator": {o.certificate(spiffe.Operator, "op", "other.example"), 403},
		"an operator":               {o.certificate(spiffe.Operator, "op", domain), 200},
	} {
		for _, path := range []string{"/v1/gateways", "/v1/kit", "/v1/status"} {
			got := o.do(c.state, "GET", path, "", "")
			if got.Code != c.want {
				t.Errorf("%s, GET %s: %d; expected %d", name, path, got.Code, c.want)
			}
			if closed := got.Header().Get("Connection") == "close"; closed != (c.want != 200) {
				t.Errorf("%s, GET %s: connection ends: %t", name, path, closed)
			}
		}
	}
	if got := o.events(); strings.Count(got, "refused operators' API denied") != 9 {
		t.Errorf("refusals of proven identities are to be journaled singly:\n%s", got)
	}
	if got := strings.Join(o.counted, "\n"); strings.Count(got, "192.0.2.1:1234 api: no client certificate") != 9 || len(o.counted) != 9 {
		t.Errorf("refusals of those who prove nothing are to be counted, each:\n%s", got)
	}
	if got := o.do(nil, "GET", "/healthz", "", ""); got.Code != 200 {
		t.Errorf("health probes need no certificate: %d", got.Code)
	}
}

func TestImportListShowAndKit(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	ek := hex.EncodeToString(bytes.Repeat([]byte{7}, 32))
	got := o.do(op, "POST", "/v1/gateways/import", "text/csv", "id,ek_sha256,site,ward,profile\nicu-7,"+ek+",main,icu,default\n")
	var results []client.ImportResult
	if err := json.Unmarshal(got.Body.Bytes(), &results); err != nil || len(results) != 1 || results[0].Result == "refused" {
		t.Fatalf("import: %d %s", got.Code, got.Body)
	}
	if got := o.do(op, "POST", "/v1/gateways/import", "text/csv", "id,ek\nicu-7,1\n"); got.Code != 400 || !strings.Contains(got.Body.String(), "manifest") {
		t.Errorf("bad manifest: %d %s", got.Code, got.Body)
	}
	if got := o.do(op, "GET", "/v1/gateways/icu-7", "", ""); got.Code != 200 || !strings.Contains(got.Body.String(), ek) {
		t.Errorf("show: %d %s", got.Code, got.Body)
	}
	if got := o.do(op, "GET", "/v1/gateways/icu-8", "", ""); got.Code != 404 {
		t.Errorf("show unknown: %d %s", got.Code, got.Body)
	}
	got = o.do(op, "GET", "/v1/kit?server=10.0.0.1:443", "", "")
	kit, err := enroll.ParseKit(got.Body.Bytes())
	if err != nil || kit.TrustDomain != domain || kit.Servers[0] != "10.0.0.1:443" {
		t.Errorf("kit: %v", err)
	}
	if got := o.do(op, "GET", "/v1/kit?server=nonsense", "", ""); got.Code != 400 {
		t.Errorf("kit with a bad address: %d %s", got.Code, got.Body)
	}
	log := o.events()
	for _, want := range []string{"gateway.imported icu-7 success", "registry.read icu-7 success", "kit.issued  success"} {
		if !strings.Contains(log, want) {
			t.Errorf("no event %q in\n%s", want, log)
		}
	}
}

// TestRefusedApprovalsAreInTheJournal: an operator who tries to admit what the registry refuses leaves a trace, as an import does.
func TestRefusedApprovalsAreInTheJournal(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	taken := registry.Gateway{ID: "icu-7", EKs: [][32]byte{{1}}, Ward: "icu"}
	if _, err := o.reg.Import(t.Context(), audit.Actor{ID: "test"}, "", []registry.Gateway{taken}); err != nil {
		t.Fatal(err)
	}
	ek := [32]byte{2}
	if err := o.reg.Wait(t.Context(), registry.Waiting{EK: ek, Peer: "192.0.2.9:1"}); err != nil {
		t.Fatal(err)
	}
	waiting := hex.EncodeToString(ek[:])
	for _, c := range []struct {
		name, fingerprint, id string
		code                  int
		event                 string
	}{
		{"the id is another's", waiting, "icu-7", 409, "gateway.approved icu-7 denied"},
		{"nobody waits", "AAAA-BBBB-CCCC-DDDD", "icu-8", 404, "gateway.approved icu-8 denied"},
		{"admitted", waiting, "icu-9", 200, "gateway.approved icu-9 success"},
	} {
		body := fmt.Sprintf(`{"fingerprint":%q,"id":%q,"site":"main","ward":"icu","profile":"default"}`, c.fingerprint, c.id)
		if got := o.do(op, "POST", "/v1/gateways/approve", "application/json", body); got.Code != c.code {
			t.Errorf("%s: %d %s; expected %d", c.name, got.Code, got.Body, c.code)
		}
		if log := o.events(); strings.Count(log, c.event) != 1 {
			t.Errorf("%s: not one event %q in\n%s", c.name, c.event, log)
		}
	}
}

// TestRevoke: what an operator hears, and that each try leaves its event.
func TestRevoke(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	if _, err := o.reg.Import(t.Context(), audit.Actor{ID: "test"}, "", []registry.Gateway{{ID: "icu-7", EKs: [][32]byte{{1}}}, {ID: "icu-8", EKs: [][32]byte{{2}}}}); err != nil {
		t.Fatal(err)
	}
	revoke := func(id, body string) (int, client.RevokeAnswer, string) {
		t.Helper()
		got := o.do(op, "POST", "/v1/gateways/"+id+"/revoke", "application/json", body)
		var out client.RevokeAnswer
		if got.Code == 200 {
			if err := json.Unmarshal(got.Body.Bytes(), &out); err != nil {
				t.Fatal(err)
			}
		}
		return got.Code, out, got.Body.String()
	}
	if code, _, body := revoke("icu-7", `{"reason":" "}`); code != 400 || !strings.Contains(body, "reason") {
		t.Errorf("without a reason: %d %s", code, body)
	}
	if code, _, body := revoke("icu-9", `{"reason":"stolen"}`); code != 404 || !strings.Contains(body, "icu-9") {
		t.Errorf("an unknown gateway: %d %s", code, body)
	}
	code, out, body := revoke("icu-7", `{"reason":"stolen"}`)
	if code != 200 || out.Already || !out.Journaled || out.Gateway != "icu-7" || out.By != "spiffe://"+domain+"/operator/op" || out.Reason != "stolen" {
		t.Errorf("%d %s", code, body)
	}
	if code, again, body := revoke("icu-7", `{"reason":"lost"}`); code != 200 || !again.Already || again.Reason != "stolen" {
		t.Errorf("again: %d %s", code, body)
	}
	if got := o.do(op, "GET", "/v1/gateways/icu-7", "", ""); !strings.Contains(got.Body.String(), `"state":"revoked"`) || !strings.Contains(got.Body.String(), `"reason":"stolen"`) {
		t.Errorf("show: %s", got.Body)
	}
	if got := o.do(o.certificate(spiffe.Access, "ehr", domain), "POST", "/v1/gateways/icu-8/revoke", "application/json", `{"reason":"x"}`); got.Code != 403 {
		t.Errorf("a service account revokes: %d", got.Code)
	}
	log := o.events()
	if strings.Count(log, "gateway.revoked icu-7 success") != 2 || strings.Count(log, "gateway.revoked icu-9 denied") != 1 {
		t.Errorf("events:\n%s", log)
	}
	// A journal that is gone keeps nobody in.
	if err := o.journal.Close(); err != nil {
		t.Fatal(err)
	}
	if code, out, body := revoke("icu-8", `{"reason":"stolen"}`); code != 200 || out.Journaled {
		t.Errorf("without a journal: %d %s", code, body)
	}
	if _, err := o.reg.Admit(t.Context(), "icu-8"); !errors.Is(err, registry.ErrRevoked) {
		t.Errorf("without a journal, it is admitted: %v", err)
	}
	if n, err := o.outbox.Waiting(t.Context()); err != nil || n != 1 {
		t.Errorf("%d events wait, %v; expected the revocation's", n, err)
	}
}

func TestAccessIsRegisteredBeforeItIsGiven(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(client.AccessRequest{Name: "ehr", CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	got := o.do(op, "POST", "/v1/access", "application/json", string(body))
	var grant client.AccessGrant
	if err := json.Unmarshal(got.Body.Bytes(), &grant); err != nil || got.Code != 200 {
		t.Fatalf("%d %s", got.Code, got.Body)
	}
	block, _ := pem.Decode([]byte(grant.Certificate))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	i, err := o.reg.Authorise(t.Context(), spiffe.Access, "ehr", registry.IdentityCertificate{Serial: ca.Serial(leaf), SPKI: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)})
	if err != nil || i.Owner != "op" || !i.Scope.Empty() {
		t.Errorf("registered access: %+v, %v; expected one that sees nothing yet", i, err)
	}
	if leaf.URIs[0].String() != "spiffe://ward.example/access/ehr" || leaf.NotAfter.After(time.Now().Add(25*time.Hour)) {
		t.Errorf("certificate of %s until %s", leaf.URIs, leaf.NotAfter)
	}
	csr[len(csr)-1] ^= 1 // the proof of possession
	body, _ = json.Marshal(client.AccessRequest{Name: "ehr", CSR: csr})
	for name, bad := range map[string]string{
		"broken proof": string(body), "bad name": `{"name":"Not A Name"}`, "unknown field": `{"nmae":"x"}`, "no JSON": "x",
	} {
		if got := o.do(op, "POST", "/v1/access", "application/json", bad); got.Code != 400 {
			t.Errorf("%s: %d %s", name, got.Code, got.Body)
		}
	}
}

func TestPanicsAndHugeBodiesStayWithTheirRequest(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	if got := o.do(op, "GET", "/metrics", "", ""); got.Code != 500 || strings.Contains(got.Body.String(), "broken") {
		t.Errorf("panic: %d %s", got.Code, got.Body)
	}
	huge := strings.Repeat("x", 34<<20)
	if got := o.do(op, "POST", "/v1/gateways/import", "text/csv", huge); got.Code != 413 {
		t.Errorf("huge body: %d", got.Code)
	}
}

// TestConfigurationVersionsGrowOnlyWithTheRegistry: the same document is given until the registry says something else.
func TestConfigurationVersionsGrowOnlyWithTheRegistry(t *testing.T) {
	o := newOffice(t)
	g := registry.Gateway{ID: "icu-7", EKs: [][32]byte{{1}}, Ward: "icu"}
	if _, err := o.reg.Import(t.Context(), audit.Actor{ID: "test"}, "", []registry.Gateway{g}); err != nil {
		t.Fatal(err)
	}
	first, err := o.document("icu-7")
	if err != nil {
		t.Fatal(err)
	}
	again, err := o.document("icu-7")
	if err != nil || !bytes.Equal(first, again) {
		t.Errorf("a second document for the same settings: %v", err)
	}
	c, err := enroll.VerifyConfiguration(first, o.keys.Config.Public().(ed25519.PublicKey), "icu-7", "", 0)
	if err != nil || c.Version != 1 || c.Ward != "icu" || c.Lanes == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if n := strings.Count(o.events(), "config.issued icu-7 success"); n != 1 {
		t.Errorf("%d events for one document", n)
	}
	if _, err := o.document("icu-8"); err == nil {
		t.Error("a configuration for an unknown gateway")
	}
}

// TestStoredConfigurationWaitsForItsEvent: a stored document is given out only once what its transaction left in the outbox is durable;
// the caller that stored it may have died, or be about to move it.
func TestStoredConfigurationWaitsForItsEvent(t *testing.T) {
	o := newOffice(t)
	g := registry.Gateway{ID: "icu-7", EKs: [][32]byte{{1}}, Ward: "icu"}
	if _, err := o.reg.Import(t.Context(), audit.Actor{ID: "test"}, "", []registry.Gateway{g}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.document("icu-7"); err != nil {
		t.Fatal(err)
	}
	err := o.db.Write(t.Context(), func(tx *sql.Tx) error {
		return o.outbox.Add(tx, audit.Event{Type: audit.ConfigIssued, Actor: audit.Actor{ID: "server"}, Target: "in-the-outbox", Outcome: audit.Success})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.document("icu-7"); err != nil {
		t.Fatal(err)
	}
	if log := o.events(); !strings.Contains(log, "config.issued in-the-outbox success") {
		t.Errorf("the document left before its event:\n%s", log)
	}
	if err := o.journal.Close(); err != nil {
		t.Fatal(err)
	}
	err = o.db.Write(t.Context(), func(tx *sql.Tx) error {
		return o.outbox.Add(tx, audit.Event{Type: audit.ConfigIssued, Actor: audit.Actor{ID: "server"}, Target: "stuck", Outcome: audit.Success})
	})
	if err != nil {
		t.Fatal(err)
	}
	if doc, err := o.document("icu-7"); err == nil || doc != nil {
		t.Error("a document is given out although its event cannot be journaled")
	}
}
