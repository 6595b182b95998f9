package fhir_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/secret"
	"wardlink/internal/spiffe"
	"wardlink/server/fhir"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

var pseudonym = secret.Bytes("a pseudonym key of the tests")

const (
	base   = "https://ward.example:8443/fhir"
	system = "urn:oid:2.25.77"
	start  = int64(1_780_000_000_000) // 2026-05-28T20:26:40Z
)

type fixture struct {
	*fhir.Server
	t       testing.TB
	db      *sqldb.DB
	journal *sqldbtest.Journal // of the FHIR server
	reg     *registry.Registry
	acts    *sqldbtest.Journal // of the registry
	cert    *x509.Certificate
	log     bytes.Buffer
	cfg     fhir.Config
	verdict string // of what fill publishes; "" is accepted
}

func setup(t testing.TB, messages ...telemetry.Message) *fixture {
	t.Helper()
	f := &fixture{t: t, journal: &sqldbtest.Journal{}, acts: &sqldbtest.Journal{}}
	f.db, _ = sqldbtest.New(t, slices.Concat(sqldb.OutboxMigrations(), records.Migrations(), registry.Migrations())...)
	outbox, err := sqldb.NewOutbox(f.db, f.acts, nil)
	if err != nil {
		t.Fatal(err)
	}
	if f.reg, err = registry.New(registry.Config{DB: f.db, Outbox: outbox}); err != nil {
		t.Fatal(err)
	}
	f.cert = f.issue("access", "ehr", 7)
	if len(messages) > 0 {
		f.fill(messages)
	}
	f.cfg = fhir.Config{
		Store: records.NewStore(f.db, pseudonym), Journal: f.journal, Access: f.reg, Pseudonym: pseudonym,
		TrustDomain: "ward.example", BaseURL: base + "/", Log: slog.New(slog.NewTextHandler(&f.log, nil)),
	}
	f.restart()
	return f
}

func (f *fixture) restart() {
	f.t.Helper()
	var err error
	if f.Server, err = fhir.New(f.cfg); err != nil {
		f.t.Fatal(err)
	}
}

// issue makes a certificate of one kind; service accounts are entered, with a scope that holds everything where there is none yet.
func (f *fixture) issue(kind spiffe.Kind, name string, serial int64) *x509.Certificate {
	f.t.Helper()
	cert := f.certificate(kind, name, serial)
	if kind == spiffe.Access {
		f.enter(name, registry.Scope{All: true}, cert.SerialNumber.Text(16), cert)
	}
	return cert
}

// scoped is the certificate of an account with a scope.
func (f *fixture) scoped(name string, serial int64, scope registry.Scope) *x509.Certificate {
	f.t.Helper()
	cert := f.certificate(spiffe.Access, name, serial)
	f.enter(name, scope, cert.SerialNumber.Text(16), cert)
	return cert
}

// enter enters a certificate under a serial; the account too, unless it is there.
func (f *fixture) enter(name string, scope registry.Scope, serial string, cert *x509.Certificate) {
	f.t.Helper()
	who := audit.Actor{ID: "test"}
	err := f.reg.Enter(f.t.Context(), who, "", registry.Identity{Kind: spiffe.Access, Name: name, Scope: scope})
	if err == nil || errors.Is(err, registry.ErrConflict) {
		err = f.reg.Certify(f.t.Context(), who, "", spiffe.Access, name, "", registry.IdentityCertificate{
			Serial: serial, SPKI: sha256.Sum256(cert.RawSubjectPublicKeyInfo), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter})
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) certificate(kind spiffe.Kind, name string, serial int64) *x509.Certificate {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	id, _ := url.Parse(spiffe.ID{TrustDomain: "ward.example", Kind: kind, Name: name}.String())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{id},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		f.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		f.t.Fatal(err)
	}
	return cert
}

type oneKey registry.Key

func (k oneKey) KeyBySPKI(context.Context, [32]byte) (registry.Key, error) {
	return registry.Key(k), nil
}

// fill takes messages through seal, journal and records, as they come in the field.
func (f *fixture) fill(messages []telemetry.Message) {
	f.t.Helper()
	check := func(err error) {
		f.t.Helper()
		if err != nil {
			f.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	key, err := seal.GenerateKey()
	check(err)
	device, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	der, err := x509.MarshalPKIXPublicKey(&device.PublicKey)
	check(err)
	period, err := seal.NewPeriod(key.Public(), telemetry.Epoch{1}, time.Now())
	check(err)
	signed, err := seal.SignRecord(period.Record(), device)
	check(err)
	j := &sqldbtest.Journal{}
	head, err := audit.EncodeEvent(audit.Event{
		ID: j.NextID(), Type: audit.SealingBrought, Outcome: audit.Success, Actor: audit.Actor{ID: "spiffe://ward.example/gateway/gw-1"},
	})
	check(err)
	check(j.Append(ctx, journal.Entry{ID: j.NextID(), Kind: journal.KindSealing, Head: head, Blob: signed}))
	const perBatch = 500
	batches := int64(0)
	for part := range slices.Chunk(messages, perBatch) {
		plain, err := telemetry.Encode(telemetry.Batch{Boot: [16]byte{1}, Messages: part})
		check(err)
		frame, err := period.Seal(seal.Header{Lane: telemetry.LaneVitals, Number: uint64(batches)}, plain)
		check(err)
		row := audit.Row{
			ID: j.NextID(), Gateway: "gw-1", Epoch: telemetry.Epoch{1}, Lane: uint8(telemetry.LaneVitals), Number: uint64(batches),
			Frame: seal.FrameHash(frame), Received: start + 500, Verdict: cmp.Or(f.verdict, audit.Accepted),
		}
		head, err := audit.EncodeRow(row)
		check(err)
		check(j.Append(ctx, journal.Entry{ID: row.ID, Kind: journal.KindPublish, Head: head, Blob: frame}))
		batches++
	}
	outbox, err := sqldb.NewOutbox(f.db, j, nil)
	check(err)
	r, err := records.New(records.Config{
		DB: f.db, Outbox: outbox, Journal: j, Registry: oneKey{Gateway: "gw-1", Public: der}, Key: key, Pseudonym: pseudonym, Log: slog.New(slog.NewTextHandler(&f.log, nil)),
	})
	check(err)
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(run) }()
	for {
		s, err := r.Stats(ctx)
		check(err)
		if s.Batches == batches {
			break
		}
		if ctx.Err() != nil || s.Dead > 0 {
			f.t.Fatalf("records: %+v\n%s", s, f.log.String())
		}
		<-time.After(5 * time.Millisecond)
	}
	stop()
	check(<-ended)
}

// request is a request of the holder of cert; nil is a client without one.
func (f *fixture) request(method, target string, cert *x509.Certificate) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = "192.0.2.1:40000"
	r.TLS = &tls.ConnectionState{}
	if cert != nil {
		r.TLS.PeerCertificates = []*x509.Certificate{cert}
		r.TLS.VerifiedChains = [][]*x509.Certificate{{cert}}
	}
	return r
}

// do sends a request.
func (f *fixture) do(method, target string, cert *x509.Certificate, change ...func(*http.Request)) *httptest.ResponseRecorder {
	f.t.Helper()
	r := f.request(method, target, cert)
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

// get expects a resource.
func (f *fixture) get(target string) map[string]any {
	f.t.Helper()
	w := f.do("GET", target, f.cert)
	if w.Code != http.StatusOK {
		f.t.Fatalf("GET %s: %d %s", target, w.Code, w.Body)
	}
	if ct := w.Header().Get("Content-Type"); !strings.HasPrefix(ct, "application/fhir+json") {
		f.t.Errorf("content type %q", ct)
	}
	return decode(f.t, w.Body.Bytes())
}

// decode keeps numbers as they stand in the text.
func decode(t testing.TB, data []byte) (out map[string]any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&out); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return out
}

// at walks a resource by keys and indexes: at(r, "entry", 0, "resource", "id").
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// text is at, printed; "" where there is nothing.
func text(v any, path ...any) string {
	if got := at(v, path...); got != nil {
		return fmt.Sprint(got)
	}
	return ""
}

// reading is one message with one observation of a heart rate.
func reading(patient string, n int, value string, change ...func(*telemetry.Message, *telemetry.Observation)) telemetry.Message {
	m := telemetry.Message{
		Source: "bed-1", Digest: sha256.Sum256(fmt.Appendf(nil, "%s/%d/%s", patient, n, value)), Received: telemetry.Stamp{Wall: start + int64(n)*1000},
		Type: "ORU^R01^ORU_R01", Processing: "P", Patient: telemetry.Patient{ID: patient, Authority: "HOSP&2.25.77&ISO"},
	}
	o := telemetry.Observation{
		Type: "NM", Code: telemetry.Code{MDC: 147842, ID: "147842", Name: "MDC_ECG_HEART_RATE", Sys: "MDC"}, Value: value,
		Unit:   telemetry.Unit{Sent: "264864^MDC_DIM_BEAT_PER_MIN^MDC", UCUM: "/min"},
		Status: "R", Time: "20260528222640.000+0200", At: start + int64(n)*1000, Device: "0011223344556677",
	}
	for _, c := range change {
		c(&m, &o)
	}
	m.Observations = []telemetry.Observation{o}
	return m
}

func search(patient, more string) string {
	return "/fhir/Observation?patient.identifier=" + url.QueryEscape(system+"|"+patient) + more
}
