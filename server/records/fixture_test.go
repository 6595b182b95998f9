package records_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/secret"
	"wardlink/internal/spiffe"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

var pseudonym = secret.Bytes("sixteen bytes or more of a test key")

func migrations() []sqldb.Migration {
	return slices.Concat(sqldb.OutboxMigrations(), records.Migrations())
}

// keys is a registry of device keys. A key that is not in it is unknown.
type keys struct {
	mu   sync.Mutex
	keys map[[32]byte]registry.Key
}

func (k *keys) KeyBySPKI(_ context.Context, spki [32]byte) (registry.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.keys[spki]
	if !ok {
		return registry.Key{}, fmt.Errorf("test: %w", registry.ErrUnknown)
	}
	return key, nil
}

func (k *keys) add(t testing.TB, gateway string, pub *ecdsa.PublicKey) {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		k.keys = make(map[[32]byte]registry.Key)
	}
	k.keys[sha256.Sum256(der)] = registry.Key{Gateway: gateway, SPKI: sha256.Sum256(der), Public: der}
}

type fixture struct {
	t       testing.TB
	ctx     context.Context
	db      *sqldb.DB
	path    string
	journal *sqldbtest.Journal
	reading records.Journal // what the records see of it; nil: all
	keys    *keys
	key     seal.PrivateKey
	log     lockedBuffer
	clock   *clock

	step      time.Duration // that the clock makes each time a test looks
	retention *records.Retention
	files     records.Files
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// clock is a time that tests move.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	passed time.Duration // what passed, whatever the clock was set to
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.passed += d
}

// set is somebody setting the clock, or a dead battery: no time passes.
func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

func (c *clock) elapsed() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passed
}

// setup makes a fixture; more are tables and triggers of the test's own.
func setup(t testing.TB, more ...string) *fixture {
	t.Helper()
	f := &fixture{t: t, ctx: context.Background(), journal: &sqldbtest.Journal{}, keys: &keys{}, clock: &clock{now: time.Now()}, step: time.Second}
	schema := migrations()
	for i, s := range more {
		schema = append(schema, sqldb.Migration{Domain: "zz_test", Version: i + 1, SQL: s})
	}
	f.db, f.path = sqldbtest.New(t, schema...)
	var err error
	if f.key, err = seal.GenerateKey(); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) open() *records.Records {
	f.t.Helper()
	outbox, err := sqldb.NewOutbox(f.db, f.journal, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	var j records.Journal = f.journal
	if f.reading != nil {
		j = f.reading
	}
	r, err := records.New(records.Config{
		DB: f.db, Outbox: outbox, TrustDomain: "ward.example", Journal: j, Registry: f.keys, Key: f.key, Pseudonym: pseudonym,
		Log: slog.New(slog.NewTextHandler(&f.log, nil)), Now: f.clock.Now,
		Retention: f.retention, Files: f.files, Elapsed: f.clock.elapsed,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// until runs the records until done holds and all of the journal is consumed.
func (f *fixture) until(what string, done func(records.Stats) bool) {
	f.t.Helper()
	f.settleWith(what, f.open(), done)
}

// settleWith runs r until done holds, the journal is consumed and every event is in it.
func (f *fixture) settleWith(what string, r *records.Records, done func(records.Stats) bool) {
	f.t.Helper()
	f.run(what, r, func() bool {
		s, err := r.Stats(f.ctx)
		if err != nil {
			f.t.Fatal(err)
		}
		var events int
		if err := f.db.QueryRow(f.ctx, "SELECT COUNT(*) FROM events_out").Scan(&events); err != nil {
			f.t.Fatal(err)
		}
		return done(s) && events == 0 && f.journal.Cursor(records.Consumer) == uint64(f.journal.Len())
	})
}

// during runs the records until done holds, whatever they have consumed by then.
func (f *fixture) during(what string, done func() bool) {
	f.t.Helper()
	f.run(what, f.open(), done)
}

// run runs the records until done holds or a deadline passes, moving the clock so that nothing waits for it.
func (f *fixture) run(what string, r *records.Records, done func() bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, 3*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	// The clock goes on every two milliseconds; who looked that often would take a processor from what he waits for.
	for ticks := 1; !done(); ticks = min(ticks+1, 10) {
		if ctx.Err() != nil {
			s, err := r.Stats(f.ctx)
			f.t.Fatalf("%s: not reached, at %+v (%v), cursor %d of %d\n%.800s", what, s, err, f.journal.Cursor(records.Consumer), f.journal.Len(), f.log.String())
		}
		for range ticks {
			f.clock.add(f.step)
			select {
			case err := <-ended:
				f.t.Fatalf("%s: Run ended with %v", what, err)
			case <-time.After(2 * time.Millisecond):
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) store() *records.Store { return records.NewStore(f.db, pseudonym) }

// gateway is a gateway's side: device key, epoch, sealing period.
type gateway struct {
	f      *fixture
	name   string
	device *ecdsa.PrivateKey
	epoch  telemetry.Epoch
	period *seal.Period
	next   uint64
	lane   telemetry.Lane
}

func (f *fixture) gateway(name string) *gateway {
	f.t.Helper()
	g := &gateway{f: f, name: name, lane: telemetry.LaneVitals}
	var err error
	if g.device, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		f.t.Fatal(err)
	}
	_, _ = rand.Read(g.epoch[:])
	g.newPeriod()
	return g
}

func (g *gateway) newPeriod() {
	g.f.t.Helper()
	var err error
	if g.period, err = seal.NewPeriod(g.f.key.Public(), g.epoch, g.f.clock.Now()); err != nil {
		g.f.t.Fatal(err)
	}
}

// enrol makes the gateway's key known to the registry.
func (g *gateway) enrol() *gateway {
	g.f.t.Helper()
	g.f.keys.add(g.f.t, g.name, &g.device.PublicKey)
	return g
}

// bring journals the sealing record as published by the named gateway.
func (g *gateway) bring(publisher string) *gateway { return g.bringAs(publisher, g.device) }

// bringAs signs with the gateway's key and claims that it is another.
func (g *gateway) bringAs(publisher string, claimed *ecdsa.PrivateKey) *gateway {
	g.f.t.Helper()
	signed, err := seal.SignRecord(g.period.Record(), g.device)
	if err != nil {
		g.f.t.Fatal(err)
	}
	if claimed != g.device {
		signed = bytes.Replace(signed, spki(g.f.t, g.device), spki(g.f.t, claimed), 1)
	}
	ev := audit.Event{
		ID: g.f.journal.NextID(), Type: audit.SealingBrought, Time: g.f.clock.Now().UnixMilli(), Outcome: audit.Success,
		Actor: audit.Actor{ID: spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Gateway, Name: publisher}.String()},
	}
	head, err := audit.EncodeEvent(ev)
	if err != nil {
		g.f.t.Fatal(err)
	}
	g.f.append(journal.Entry{ID: ev.ID, Kind: journal.KindSealing, Head: head, Blob: signed})
	return g
}

func spki(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(der)
	return hash[:]
}

func sha(data []byte) [32]byte { return sha256.Sum256(data) }

func (f *fixture) append(e journal.Entry) {
	f.t.Helper()
	if err := f.journal.Append(f.ctx, e); err != nil {
		f.t.Fatal(err)
	}
}

// seal makes the frame of the next batch on the gateway's present lane. Numbers are shared by its lanes, which no agent does.
func (g *gateway) seal(plain []byte) []byte {
	g.f.t.Helper()
	frame, err := g.period.Seal(seal.Header{Lane: g.lane, Number: g.next, Wall: 1, Mono: 1}, plain)
	if err != nil {
		g.f.t.Fatal(err)
	}
	g.next++
	return frame
}

func (g *gateway) sealBatch(messages ...telemetry.Message) []byte {
	g.f.t.Helper()
	plain, err := telemetry.Encode(telemetry.Batch{Boot: [16]byte{1}, Messages: messages})
	if err != nil {
		g.f.t.Fatal(err)
	}
	return g.seal(plain)
}

// publish journals a frame as ingest does for the named gateway.
func (g *gateway) publish(publisher string, frame []byte) {
	g.f.t.Helper()
	g.publishAs(audit.Accepted, publisher, frame)
}

func (g *gateway) publishAs(verdict, publisher string, frame []byte) {
	g.f.t.Helper()
	h, err := seal.CheckFrame(frame)
	if err != nil {
		g.f.t.Fatal(err)
	}
	row := audit.Row{
		ID: g.f.journal.NextID(), Gateway: publisher, Epoch: h.Epoch, Lane: uint8(h.Lane), Number: h.Number, Frame: seal.FrameHash(frame),
		Received: g.f.clock.Now().UnixMilli(), Serial: "01", Peer: "10.0.0.1:1", Verdict: verdict,
	}
	head, err := audit.EncodeRow(row)
	if err != nil {
		g.f.t.Fatal(err)
	}
	g.f.append(journal.Entry{ID: row.ID, Kind: journal.KindPublish, Head: head, Blob: frame})
}

const start = int64(1_780_000_000_000)

// message is a monitor's message with a heart rate for each value.
func message(patient string, n int, values ...string) telemetry.Message {
	m := telemetry.Message{
		Source: "bed-1", Digest: sha256.Sum256(fmt.Appendf(nil, "%s/%d/%v", patient, n, values)), Received: telemetry.Stamp{Wall: start + int64(n)*1000 + 20, Mono: 5},
		Type: "ORU^R01^ORU_R01", ControlID: fmt.Sprint(n), Sender: "MON", Processing: "P", SentAt: "20260528",
		Patient: telemetry.Patient{ID: patient, Authority: "HOSP&2.25.77&ISO", Location: "ICU^1"},
	}
	for i, v := range values {
		m.Observations = append(m.Observations, telemetry.Observation{
			Index: uint32(i), Type: "NM", Code: telemetry.Code{MDC: 147842 + uint32(i), ID: fmt.Sprint(147842 + i), Name: "MDC_X", Sys: "MDC"},
			Value: v, Unit: telemetry.Unit{Sent: "264864^MDC_DIM_BEAT_PER_MIN^MDC", UCUM: "/min"}, SubID: "1.5.1.1", Status: "R",
			Time: fmt.Sprintf("t%d", n), At: start + int64(n)*1000, Device: "EUI",
		})
	}
	return m
}

// values gives the stored values of a patient, the newest first, read page by page.
func (f *fixture) values(patient string, limit int) (out []string) {
	f.t.Helper()
	s := f.store()
	q := records.Query{Patients: []string{s.PatientID("urn:oid:2.25.77", patient)}, Limit: limit}
	for {
		page, err := s.Search(f.ctx, q)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, o := range page.Observations {
			out = append(out, o.Value)
		}
		if !page.More {
			return out
		}
		last := page.Observations[len(page.Observations)-1].Position()
		q.After = &last
	}
}
