package alerts

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// desk is a set of alerts over a real database, with a clock that stands still until it is moved.
type desk struct {
	t       *testing.T
	journal *sqldbtest.Journal
	db      *sqldb.DB
	outbox  *sqldb.Outbox
	path    string
	cfg     Config
	*Alerts

	mu sync.Mutex
	at time.Time
}

func schema() []sqldb.Migration { return append(sqldb.OutboxMigrations(), Migrations()...) }

func newDesk(t *testing.T, s Settings) *desk {
	t.Helper()
	d := &desk{t: t, journal: &sqldbtest.Journal{}, at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	d.db, d.path = sqldbtest.New(t, schema()...)
	var err error
	if d.outbox, err = sqldb.NewOutbox(d.db, d.journal, d.now); err != nil {
		t.Fatal(err)
	}
	d.cfg = Config{
		DB: d.db, Outbox: d.outbox, NextID: d.journal.NextID, Server: "ward.example", Settings: s, Log: slog.New(slog.DiscardHandler), Now: d.now,
	}
	d.restart()
	return d
}

// restart is the next life of the process.
func (d *desk) restart() {
	d.t.Helper()
	var err error
	if d.Alerts, err = New(d.cfg); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) now() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

func (d *desk) pass(span time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = d.at.Add(span)
}

func (d *desk) flush() {
	d.t.Helper()
	d.must(d.write(context.Background()))
	d.must(d.outbox.Flush(context.Background()))
}

func (d *desk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// lines are the journaled events, without ids.
func (d *desk) lines() []string {
	d.t.Helper()
	d.flush()
	return d.journal.Lines(d.t)
}

func (d *desk) expectEvents(want ...string) {
	d.t.Helper()
	if got := d.lines(); !slices.Equal(got, want) {
		d.t.Fatalf("events\n%q\nexpected\n%q", got, want)
	}
}

// queued are the messages that wait for a target, as "type subject".
func (d *desk) queued(name string) (out []string) {
	d.t.Helper()
	for _, t := range d.targets {
		if t.name != name {
			continue
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, m := range t.queue {
			var p payload
			d.must(json.Unmarshal(m.body, &p))
			out = append(out, p.Type+" "+p.Data.Subject)
		}
	}
	return out
}

func (d *desk) expectQueued(name string, want ...string) {
	d.t.Helper()
	if got := d.queued(name); !slices.Equal(got, want) {
		d.t.Fatalf("waiting for %s: %q, expected %q", name, got, want)
	}
}

func (d *desk) count(query string, args ...any) (n int) {
	d.t.Helper()
	d.must(d.db.QueryRow(context.Background(), query, args...).Scan(&n))
	return n
}

// during runs the alerts until done holds.
func (d *desk) during(what string, done func() bool) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	await(d.t, what, done)
	cancel()
	d.must(<-ended)
}

// await fails the test after a time that no busy machine needs.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not reached", what)
		}
	}
}

// operator acts.
var operator = Who{Actor: audit.Actor{ID: "spiffe://ward.example/operator/jane"}, Peer: "192.0.2.1:1"}

const secretText = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" // the secret of Standard Webhooks' own test

// secretFile writes secrets, one a line.
func secretFile(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	text := ""
	for _, l := range lines {
		text += l + "\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// got is what a receiver got.
type got struct {
	id, at, signature string
	body              []byte
	payload
}

// receiver is a real HTTPS server that answers as it is told and keeps what it got.
type receiver struct {
	*httptest.Server
	t      *testing.T
	ca     string
	answer func(n int, w http.ResponseWriter, r *http.Request) // n counts from 1

	mu  sync.Mutex
	all []got
}

func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *receiver {
	t.Helper()
	r := &receiver{t: t, answer: answer}
	r.Server = httptest.NewTLSServer(http.HandlerFunc(r.serve))
	r.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	t.Cleanup(r.Close)
	r.ca = filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	if err := os.WriteFile(r.ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *receiver) serve(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	if err != nil {
		return // the sender gave up
	}
	g := got{id: req.Header.Get("webhook-id"), at: req.Header.Get("webhook-timestamp"), signature: req.Header.Get("webhook-signature"), body: body}
	if err := json.Unmarshal(body, &g.payload); err != nil {
		r.t.Errorf("body: %v", err)
	}
	r.mu.Lock()
	r.all = append(r.all, g)
	n := len(r.all)
	r.mu.Unlock()
	if r.answer != nil {
		r.answer(n, w, req)
	}
}

func (r *receiver) got() []got {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

func (r *receiver) target(name, minimum string) Target {
	return Target{Name: name, Webhook: r.URL + "/hook", SecretFile: secretFile(r.t, secretText), CAFile: r.ca, Minimum: minimum, Timeout: 30 * time.Second}
}

// hurry makes a target's back-off short.
func (d *desk) hurry() {
	for _, t := range d.targets {
		t.first = time.Millisecond
	}
}

// unreachable is a target that refuses connections: messages wait for it.
func unreachable(t *testing.T, name, minimum string) Target {
	return Target{Name: name, Webhook: "https://127.0.0.1:1/", SecretFile: secretFile(t, secretText), Minimum: minimum}
}

func raw(t *testing.T, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newDeskLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

var errBoom = errors.New("boom")

func subjects(n int) (out []Condition) {
	for i := range n {
		out = append(out, Condition{Subject: fmt.Sprintf("gw-%03d", i)})
	}
	return out
}
