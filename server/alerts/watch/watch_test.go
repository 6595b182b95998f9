package watch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/alerts"
	"wardlink/server/boot"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
)

func TestGatewaySilent(t *testing.T) {
	p := newPost(t)
	p.register("gw-1", "gw-2", "never")
	p.set(func() { p.sessions = []string{"gw-1", "gw-2"} })
	p.pass(time.Hour)
	p.expect()
	p.set(func() { p.sessions = []string{"gw-2"} })
	p.pass(10*time.Minute - tick)
	p.expect()
	p.pass(tick)
	p.expect("gateway-silent/gw-1 warning")
	p.pass(50 * time.Minute)
	p.expect("gateway-silent/gw-1 critical")
	p.set(func() { p.sessions = []string{"gw-1", "gw-2"} })
	p.pass(90 * time.Second)
	p.expect()

	// Over a restart: nobody was heard while the server did not run, so that a gateway has its ten minutes to come back; but an alert
	// from before does not flap.
	p.set(func() { p.sessions = []string{"gw-2"} })
	p.pass(11 * time.Minute)
	p.expect("gateway-silent/gw-1 warning")
	p.set(func() { p.sessions, p.at = nil, p.at.Add(5*time.Hour) })
	p.restart()
	p.pass(9 * time.Minute)
	p.expect("gateway-silent/gw-1 critical")
	p.pass(2 * time.Minute)
	p.expect("gateway-silent/gw-1 critical", "gateway-silent/gw-2 warning")

	// One that is cut off is silent by intention.
	if _, _, err := p.registry.Revoke(t.Context(), audit.Actor{ID: "op"}, "", "gw-1", "stolen"); err != nil {
		t.Fatal(err)
	}
	p.pass(2 * time.Minute)
	p.expect("gateway-silent/gw-2 warning")
}

func TestCertificateLate(t *testing.T) {
	p := newPost(t)
	p.register("gw-1", "gw-2", "gw-3")
	issue := func(gateway, serial string, at time.Time, key string) {
		public := []byte(gateway + key)
		g, err := p.registry.Get(t.Context(), gateway)
		p.must(err)
		p.must(p.registry.AddKey(t.Context(), registry.Key{
			Gateway: gateway, EK: g.EKs[0], SPKI: sha256.Sum256(public), Public: public, Serial: serial, NotBefore: at, NotAfter: at.Add(24 * time.Hour),
		}))
	}
	start := p.now()
	for _, g := range []string{"gw-1", "gw-2"} {
		issue(g, "01"+g, start, "old")
	}
	p.leap(17 * time.Hour)
	p.expect()
	issue("gw-2", "02gw-2", p.now(), "new") // set up anew, with another key
	p.leap(time.Hour + 10*time.Minute)
	p.expect("certificate-late/gw-1 warning")
	p.leap(4 * time.Hour)
	p.expect("certificate-late/gw-1 critical")
	issue("gw-1", "03gw-1", p.now(), "old")
	p.pass(10 * time.Minute)
	p.expect()
}

func TestDeadParkedRefused(t *testing.T) {
	p := newPost(t)
	p.set(func() {
		p.dead = []records.DeadCount{{Gateway: "gw-1", Batches: 2, Oldest: p.at, Reason: "seal does not open"}}
		p.refused = map[string]ingest.Parked{"gw-2": {Count: 1, Last: p.at, Reason: "lane is not allowed to this gateway"}}
		p.rates = map[string]ingest.Rate{"10.0.0.0/24": {Count: 60}, "10.0.1.0/24": {Count: 59}}
	})
	p.pass(time.Minute)
	p.expect("batch-dead/gw-1 critical", "batch-parked/gw-2 critical", "refusals-many/10.0.0.0/24 warning")
	p.set(func() { p.dead, p.rates = nil, nil })
	p.pass(4 * time.Minute)
	p.expect("batch-parked/gw-2 critical")
	// The gateway's word counts as soon as it is about that refusal.
	p.set(func() {
		p.parked = map[string]records.ParkedReport{"gw-2": {Received: p.at.Add(-3 * time.Minute)}, "gw-3": {Received: p.at, Batches: 4}}
	})
	p.pass(3 * time.Minute)
	p.expect("batch-parked/gw-2 critical", "batch-parked/gw-3 critical")
	p.set(func() { p.parked["gw-2"] = records.ParkedReport{Received: p.at.Add(time.Hour)} })
	p.pass(3 * time.Minute)
	p.expect("batch-parked/gw-3 critical")
	p.set(func() { p.parked, p.refused = nil, map[string]ingest.Parked{"gw-4": {Count: 1, Last: p.at}} })
	p.pass(3 * time.Minute)
	p.expect("batch-parked/gw-4 critical")
	p.leap(24 * time.Hour) // a gateway that never reports
	p.expect()
}

// Nobody leaves quarantine by himself, so the alert stands until an operator acts, and says what differs.
func TestQuarantined(t *testing.T) {
	p := newPost(t)
	p.register("gw-1")
	by := audit.Actor{ID: "spiffe://ward.example/operator/op"}
	p.must(p.registry.SetBootPolicy(t.Context(), by, "", "", &boot.Policy{Mode: boot.Learn, PCRs: boot.DefaultPCRs, After: 1}))
	booted := func(loader byte) boot.Measurement {
		m := boot.Measurement{PCRs: map[int]boot.Digest{}}
		for pcr := range 8 {
			m.PCRs[pcr] = boot.Digest{loader}
		}
		return m
	}
	p.must(p.registry.Measured(t.Context(), "gw-1", booted(1)))
	p.pass(time.Minute)
	p.expect()
	p.must(p.registry.Measured(t.Context(), "gw-1", booted(2)))
	p.pass(time.Minute)
	p.expect("gateway-quarantined/gw-1 critical")
	p.must(p.registry.Measured(t.Context(), "gw-1", booted(1)))
	p.pass(5 * time.Minute)
	p.expect("gateway-quarantined/gw-1 critical")
	_, err := p.registry.Readmit(t.Context(), by, "", "gw-1", "it was the bench's boot loader", false)
	p.must(err)
	p.pass(3 * time.Minute)
	p.expect()
}

func TestGapOpen(t *testing.T) {
	p := newPost(t)
	p.set(func() { p.gaps = []records.GapCount{{Gateway: "gw-1", Batches: 3, Since: p.at}} })
	p.pass(9 * time.Minute)
	p.expect()
	p.pass(2 * time.Minute)
	p.expect("gap-open/gw-1 critical")
	p.set(func() { p.gaps = nil })
	p.pass(3 * time.Minute)
	p.expect()
}

// TestBatchesLost: a loss cannot be mended, and is an alert for a day.
func TestBatchesLost(t *testing.T) {
	p := newPost(t)
	p.set(func() { p.losses = []records.LossCount{{Gateway: "gw-1", Batches: 3, Noticed: p.at, Lanes: "vitals"}} })
	p.pass(2 * time.Minute)
	p.expect("batches-lost/gw-1 critical")
	p.leap(24 * time.Hour)
	p.expect()
}

func TestServerItself(t *testing.T) {
	p := newPost(t)
	p.set(func() { p.ill = errors.New("no space left on device") })
	p.pass(tick)
	p.expect("journal-fails/server critical")
	p.set(func() { p.ill, p.stats = nil, journal.Stats{Committed: 7, Queued: 100} })
	p.pass(2 * time.Minute) // a commit that does not come back is no better
	p.expect("journal-fails/server critical", "log-lags/server warning")
	p.set(func() { p.stats, p.log.Signed = journal.Stats{Committed: 9}, 6 })
	p.pass(10 * time.Minute)
	p.expect("log-lags/server critical")
	p.set(func() { p.log.Signed = 9 })
	p.pass(2 * time.Minute)
	p.expect()
	// The log's figure stays where it was while nothing happens: only what waits counts.
	p.set(func() { p.log.Lag = time.Hour })
	p.pass(5 * time.Minute)
	p.expect()

	p.set(func() { p.backlog = records.Backlog{Pending: 3, Oldest: p.at} })
	p.pass(5*time.Minute + tick)
	p.expect("records-lag/server critical")
	p.set(func() { p.backlog = records.Backlog{} })
	p.pass(2 * time.Minute)
	p.expect()
}

func TestBackupOld(t *testing.T) {
	stamp := filepath.Join(t.TempDir(), "stamp")
	p := newPost(t, func(c *Config) { c.BackupStamp = stamp })
	p.pass(time.Minute)
	p.expect("backup-old/stamp warning") // configured and never written
	touch := func(at time.Time) {
		p.must(os.WriteFile(stamp, nil, 0o600))
		p.must(os.Chtimes(stamp, at, at))
	}
	touch(p.now())
	p.pass(3 * time.Minute)
	p.expect()
	p.leap(25*time.Hour + 55*time.Minute)
	p.expect()
	p.pass(4 * time.Minute)
	p.expect("backup-old/stamp warning")
}

// blocked is a memory that cannot be written.
type blocked struct{ *alerts.Alerts }

func (blocked) Pulse(context.Context) error { return errors.New("database is locked") }

func TestDatabaseFails(t *testing.T) {
	p := newPost(t)
	good := p.cfg.Memory
	p.cfg.Memory = blocked{p.alerts}
	p.restart()
	p.pass(tick)
	p.expect()
	p.pass(tick)
	p.expect("database-fails/server critical")
	p.cfg.Memory = good
	p.restart()
	p.pass(3 * time.Minute)
	p.expect()
}

// A watcher that cannot look says nothing about what it watches, keeps nobody else from looking, and is an alert itself.
func TestBlindWatcher(t *testing.T) {
	p := newPost(t)
	p.set(func() { p.ill = errors.New("x") })
	p.pass(tick)
	p.expect("journal-fails/server critical")
	hang := make(chan struct{})
	for _, w := range p.watch.watchers {
		switch w.typ {
		case alerts.JournalFails:
			w.look = func(context.Context, time.Time) ([]alerts.Condition, error) { return nil, errors.New("cannot") }
		case alerts.RecordsLag:
			w.look = func(context.Context, time.Time) ([]alerts.Condition, error) { <-hang; return nil, nil }
		}
	}
	for range 8 {
		p.set(func() { p.at = p.at.Add(tick) })
		p.watch.Look(t.Context())
		for running := 2; running > 1; { // all but the one that hangs
			running = 0
			p.watch.mu.Lock()
			for _, w := range p.watch.watchers {
				if w.running {
					running++
				}
			}
			p.watch.mu.Unlock()
		}
	}
	p.expect("journal-fails/server critical", "watch-blind/journal-fails warning", "watch-blind/records-lag warning")
	close(hang)
	p.watch.Wait()
}

func TestDisk(t *testing.T) {
	const total = 1000 * gb
	st := map[string]statfs{"/a": {size: total, free: total / 2, files: 100, unused: 50, device: 1}, "/b": {size: total, free: total / 2, device: 1}}
	d := newDisk(Config{Places: []Place{{"a", "/a"}, {"b", "/b"}}, Limits: alerts.Limits{}.WithDefaults()})
	d.stat = func(path string) (statfs, error) { return st[path], nil }
	now := time.Unix(1_790_000_000, 0)
	look := func() string {
		t.Helper()
		out, err := d.look(t.Context(), now)
		if err != nil {
			t.Fatal(err)
		}
		var text []string
		for _, c := range out {
			text = append(text, fmt.Sprintf("%s %d %s", c.Subject, c.Severity, c.Detail["days_left"]))
		}
		return strings.Join(text, ",")
	}
	set := func(free uint64) {
		one := st["/a"]
		one.free = free
		st["/a"], st["/b"] = one, one // one file system is one alert
	}
	for _, c := range []struct {
		free uint64
		want string
	}{
		{total / 2, ""}, {total / 10, ""}, {total/10 - gb, "a 0 "}, {total / 31, "a 3 "},
	} {
		set(c.free)
		if got := look(); got != c.want {
			t.Errorf("%d free: %q, expected %q", c.free/gb, got, c.want)
		}
	}
	// 400 GB free, 10 GB less each hour: full within 40 hours.
	d.trends = map[uint64]*trend{}
	for h := range 10 {
		set(uint64(400-10*h) * gb)
		got := look()
		if want := map[bool]string{true: "a 0 ", false: ""}[h >= 6]; !strings.HasPrefix(got, want) || (got == "") != (want == "") {
			t.Errorf("after %d hours: %q", h, got)
		}
		now = now.Add(time.Hour)
	}
	one := st["/a"]
	one.free, one.unused = total/2, 4
	st["/a"] = one
	if got := look(); got != "a 0 " {
		t.Errorf("few files left: %q", got)
	}
	if st, err := readStatfs(t.TempDir()); err != nil || st.size == 0 || st.free > st.size {
		t.Errorf("%+v, %v", st, err)
	}
}

// pulse is a memory that remembers one time.
type pulse struct {
	Memory
	at time.Time
}

func (p pulse) LastPulse(context.Context) (time.Time, error) { return p.at, nil }

func TestClock(t *testing.T) {
	begin := time.Unix(1_790_000_000, 0)
	shift := time.Duration(0) // of the clock against the time that passed
	passed := time.Duration(0)
	wallNow := func() time.Time { return begin.Add(passed + shift) }
	when := map[time.Time]time.Duration{} // what had passed at a reading of the clock
	p := &post{}
	vouched := true
	c := newClock(Config{Memory: pulse{}, Retention: p, Vouched: func() bool { return vouched }, Limits: alerts.Limits{}.WithDefaults()})
	c.elapsed = func(since time.Time) time.Duration { return passed - when[since] }
	look := func() string {
		t.Helper()
		now := wallNow()
		when[now] = passed
		out, err := c.look(t.Context(), now)
		if err != nil {
			t.Fatal(err)
		}
		if len(out) == 0 {
			return ""
		}
		return out[0].Detail["direction"] + " " + out[0].Detail["moved"]
	}
	for _, s := range []struct {
		pass, move time.Duration
		want       string
	}{
		{0, 0, ""}, {15 * time.Second, 30 * time.Second, ""}, {15 * time.Second, 3 * time.Hour, "forward 3h0m"}, {30 * time.Minute, 0, "forward 3h0m"},
		{time.Hour, 0, ""}, {15 * time.Second, -2 * time.Hour, "back 2h0m"}, {2 * time.Hour, 0, ""},
	} {
		passed += s.pass
		shift += s.move
		if got := look(); got != s.want {
			t.Errorf("%+v: %q", s, got)
		}
	}
	// What retention does not believe is an alert until it does.
	p.kept = records.RetentionState{Suspended: true, Drift: 50 * time.Hour}
	if got := look(); got != "forward 50h0m" {
		t.Errorf("%q", got)
	}
	p.kept.Suspended = false
	// While the server does not vouch for its clock, gateways without one wait for the time.
	vouched = false
	now := wallNow()
	when[now] = passed
	out, err := c.look(t.Context(), now)
	if err != nil || len(out) != 1 || out[0].Subject != "signed-time" {
		t.Errorf("%v %v", out, err)
	}
	vouched = true
	// Over a restart a clock that went back shows against what was written.
	c = newClock(Config{Memory: pulse{at: begin.Add(24 * time.Hour)}, Retention: p, Vouched: func() bool { return true }, Limits: alerts.Limits{}.WithDefaults()})
	passed, shift = 0, 0
	when = map[time.Time]time.Duration{}
	c.elapsed = func(since time.Time) time.Duration { return passed - when[since] }
	if got := look(); got != "back 24h0m" {
		t.Errorf("%q", got)
	}
}
