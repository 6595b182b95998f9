package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wardlink/agent/source"
	"wardlink/buffer"
	"wardlink/enroll/enrolltest"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// bedside is a whole agent whose parts other than the intake are not run, with the hospital's key to look inside.
type bedside struct {
	*station
	agent *Agent
}

func newBedside(t *testing.T, state string, key seal.PrivateKey) *bedside {
	t.Helper()
	kit := enrolltest.Kit(t, "ward.example", "127.0.0.1:1", key.Public())
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(state, "kit.json")
	if err := os.WriteFile(path, kit, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{
		Kit: path, State: state, TPM: "swtpm:/nowhere", Buffer: BufferConfig{Cap: "64MB"}, Log: "text",
		Sources: []SourceConfig{{ID: "bed-1", MLLP: "127.0.0.1:0"}},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b := &bedside{&station{t: t, in: a.intake, buf: a.buf, key: key}, a}
	b.stop = runIntake(t, a.intake, a.buf)
	t.Cleanup(b.stop)
	return b
}

// reports opens the reports that wait, with the number of each.
func (b *bedside) reports() (out []telemetry.Batch, numbers []uint64) {
	b.t.Helper()
	for _, o := range b.open() {
		if o.batch.Report != nil {
			out, numbers = append(out, o.batch), append(numbers, o.id.Number)
		}
	}
	return out, numbers
}

func lane(t *testing.T, r *telemetry.Report, l telemetry.Lane, epoch telemetry.Epoch) telemetry.LaneReport {
	t.Helper()
	for _, got := range r.Lanes {
		if got.Lane == l && got.Epoch == epoch {
			return got
		}
	}
	return telemetry.LaneReport{}
}

func TestAReportSaysWhereThingsStand(t *testing.T) {
	state, key := filepath.Join(t.TempDir(), "agent"), newKey(t)
	b := newBedside(t, state, key)
	for i := range 3 {
		if err := b.accept(oru(fmt.Sprint("CANARY", i), "72")); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now()
	send(t, b)
	got, _ := b.reports()
	if len(got) != 1 {
		t.Fatalf("%d reports", len(got))
	}
	r := got[0].Report
	v := lane(t, r, telemetry.LaneVitals, telemetry.Epoch{})
	if v.Assigned != 3 || v.Sealed != 3 || v.Waiting != 3 || fmt.Sprint(v.Held) != "{[{0 2}] false}" || len(v.Void.Runs) != 0 || v.Bytes < 900 {
		t.Errorf("vitals: %+v", v)
	}
	for what, at := range map[string]int64{"sealed": v.SealedAt, "oldest": v.Oldest, "made": r.At.Wall, "started": r.Started} {
		if d := before.Sub(time.UnixMilli(at)); d > time.Minute || d < -time.Minute {
			t.Errorf("%s %v ago", what, d)
		}
	}
	if self := lane(t, r, telemetry.LaneSelf, telemetry.Epoch{}); self.Assigned != 1 {
		t.Errorf("self: %+v", self)
	}
	if len(r.Sources) != 1 || r.Sources[0].ID != "bed-1" || r.Identity.State != telemetry.IdentityNone || r.Identity.Fault == "" ||
		r.Uplink.Connected || r.Buffer.Cap != 64<<20 || r.Buffer.DiskFree == 0 {
		t.Errorf("%+v", r)
	}
	b.stop()

	// The next epoch says what is left of this one.
	b = newBedside(t, state, key)
	former := got[0].Report
	send(t, b)
	got, _ = b.reports()
	if len(got) != 2 {
		t.Fatalf("%d reports wait after a restart; expected the last of the former epoch, and one", len(got))
	}
	r = got[1].Report
	v = telemetry.LaneReport{}
	for _, l := range r.Lanes {
		if l.Lane == telemetry.LaneVitals && l.Epoch != (telemetry.Epoch{}) {
			v = l
		}
	}
	if v.Assigned != 3 || v.Waiting != 3 || fmt.Sprint(v.Held) != "{[{0 2}] false}" || v.Oldest != lane(t, former, telemetry.LaneVitals, telemetry.Epoch{}).Oldest {
		t.Errorf("the former epoch: %+v", v)
	}
}

func TestReportsDoNotMultiply(t *testing.T) {
	b := newBedside(t, filepath.Join(t.TempDir(), "agent"), newKey(t))
	for range 5 {
		send(t, b)
	}
	got, numbers := b.reports() // and now it is given out
	if fmt.Sprint(numbers) != "[4]" {
		t.Fatalf("reports %v wait; expected the last alone", numbers)
	}
	if self := lane(t, got[0].Report, telemetry.LaneSelf, telemetry.Epoch{}); self.Assigned != 5 || fmt.Sprint(self.Void) != "{[{0 3}] false}" {
		t.Errorf("%+v", self)
	}
	// One that is on its way is not withdrawn.
	send(t, b)
	_, numbers = b.reports()
	if fmt.Sprint(numbers) != "[5]" || b.buf.Stats().Lanes[telemetry.LaneSelf].Waiting != 2 {
		t.Errorf("reports %v, %d wait", numbers, b.buf.Stats().Lanes[telemetry.LaneSelf].Waiting)
	}
	send(t, b)
	send(t, b)
	got, numbers = b.reports()
	if self := lane(t, got[0].Report, telemetry.LaneSelf, telemetry.Epoch{}); fmt.Sprint(numbers) != "[7]" || fmt.Sprint(self.Void) != "{[{0 3} {6 6}] false}" {
		t.Errorf("reports %v: %+v", numbers, self)
	}
}

// crowded is an agent whose buffer has a file of so many bytes that was set aside in lane self, which nothing removes.
func crowded(t *testing.T, bytes int64) *bedside {
	t.Helper()
	state, key := filepath.Join(t.TempDir(), "agent"), newKey(t)
	newBedside(t, state, key).stop()
	aside, err := os.Create(filepath.Join(state, "buffer", "self-00000000000000aa.seg.damaged"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Fallocate(int(aside.Fd()), 0, 0, bytes), aside.Close()); err != nil {
		t.Fatal(err)
	}
	return newBedside(t, state, key)
}

// TestWhatCannotBeKeptIsVoid, and the report has room where telemetry has none.
func TestWhatCannotBeKeptIsVoid(t *testing.T) {
	b := crowded(t, 52<<20)
	send(t, b)
	if err := b.accept(oru("F", "72")); !errors.Is(err, source.ErrFull) {
		t.Fatalf("%v; expected no room", err)
	}
	send(t, b)
	got, _ := b.reports()
	if len(got) != 1 {
		t.Fatalf("%d reports", len(got))
	}
	r := got[0].Report
	v := lane(t, r, telemetry.LaneVitals, telemetry.Epoch{})
	if v.Assigned != 1 || v.Sealed != 0 || v.Failed != 1 || fmt.Sprint(v.Void.Runs) != "[{0 0}]" || r.Buffer.Fault != "the buffer is full" {
		t.Errorf("%+v, %+v", v, r.Buffer)
	}
}

// TestAFullBufferTellsWhatItDeletes, before it deletes it: exact numbers, in a report that is stored by then and stays the only one; until the
// hospital has one of them. A crash forgets none of it.
func TestAFullBufferTellsWhatItDeletes(t *testing.T) {
	b := crowded(t, 32<<20)
	send(t, b)
	rnd := mrand.NewChaCha8([32]byte{})
	noise := make([]byte, 30<<10)
	sealed := uint64(0)
	for b.buf.Stats().Lanes[telemetry.LaneVitals].Evicted == 0 {
		_, _ = rnd.Read(noise)
		if err := b.accept(append(oru(fmt.Sprint("F", sealed), "72"), fmt.Appendf(nil, "ZZZ|%x\r", noise)...)); err != nil {
			t.Fatal(err)
		}
		if sealed++; sealed > 2000 {
			t.Fatal("the cap never holds")
		}
	}
	waiting := b.buf.Stats().Lanes[telemetry.LaneSelf].Waiting
	if waiting != 1 || b.agent.reports.next.Load() != 2 {
		t.Fatalf("%d reports wait of %d made; the eviction makes one, and withdraws the former", waiting, b.agent.reports.next.Load())
	}
	batches, err := b.buf.Take(1)
	if err != nil || len(batches) != 1 || batches[0].ID.Lane != uint8(telemetry.LaneSelf) {
		t.Fatalf("%v, %v", batches, err)
	}
	b.buf.Release(batches[0].ID)
	got, _ := b.reports()
	r := got[0].Report
	v := lane(t, r, telemetry.LaneVitals, telemetry.Epoch{})
	if v.Lost.Upper || v.Held.Upper || v.Lost.Count() == 0 || v.Lost.Runs[0].First != 0 || v.Lost.Count()+v.Held.Count() != v.Assigned || v.Waiting != v.Held.Count() {
		t.Errorf("%+v", v)
	}
	if r.Buffer.Fault != evictingFault || r.Buffer.FaultAt == 0 {
		t.Errorf("%+v", r.Buffer)
	}
	for _, f := range b.agent.describe().Examine(time.Now()) {
		if f.Name == "vitals" && (f.Level != Warning || !strings.Contains(f.Found, "deleted undelivered") || !strings.Contains(f.Mend, "buffer.cap")) {
			t.Errorf("%+v", f)
		}
	}
	told := func() bool {
		for _, a := range b.buf.Accounts() {
			if len(a.Lost) > 0 {
				return a.Told
			}
		}
		t.Fatal("nothing is lost")
		return false
	}
	if told() {
		t.Error("told before the hospital has the report")
	}
	linkBuffer{b.buf, b.agent.reports}.Ack(batches[0].ID)
	if !told() {
		t.Error("the hospital has the report, and counts as not told")
	}
}

// TestLanesOfFormerEpochsKeepTheirAccounts, whichever epoch's account comes first: its batches and its losses are told under its own name.
func TestLanesOfFormerEpochsKeepTheirAccounts(t *testing.T) {
	own := telemetry.Epoch{7}
	var lanes [telemetry.LaneCount]laneAccount
	lanes[telemetry.LaneVitals].assigned = 30
	account := func(epoch byte, rev uint64, first, last uint64) buffer.Account {
		return buffer.Account{
			Epoch: [16]byte{epoch}, Lane: uint8(telemetry.LaneVitals), Next: last + 1, Waiting: last - first + 1, Held: []buffer.Run{{First: first, Last: last}},
			Lost: []buffer.Run{{First: 0, Last: first - 1}}, LossID: buffer.LossID{Epoch: [16]byte{epoch}, Lane: uint8(telemetry.LaneVitals), Rev: rev},
		}
	}
	out, losses := laneReports(own, lanes, Status{}, []buffer.Account{account(5, 1, 57, 340), account(7, 2, 4, 28), account(9, 3, 2, 3)})
	want := map[telemetry.Epoch]telemetry.Span{{}: {First: 4, Last: 28}, {5}: {First: 57, Last: 340}, {9}: {First: 2, Last: 3}}
	if len(out) != len(want) || len(losses) != len(want) {
		t.Fatalf("%+v %+v", out, losses)
	}
	for _, l := range out {
		w := want[l.Epoch]
		if len(l.Held.Runs) != 1 || l.Held.Runs[0] != w || l.Waiting != w.Last-w.First+1 || len(l.Lost.Runs) != 1 || l.Lost.Runs[0].Last != w.First-1 {
			t.Errorf("epoch %v: %+v; expected held %v", l.Epoch, l, w)
		}
	}
}

func TestReportsAreDue(t *testing.T) {
	b := newBedside(t, filepath.Join(t.TempDir(), "agent"), newKey(t))
	well := b.agent.status()
	well.Gateway, well.Uplink.Connected = "gw-1", true
	now := time.Now()
	told := func(s Status) *reporter {
		r := &reporter{agent: b.agent, made: now}
		r.every.Store(int64(reportEvery))
		r.seen = r.notable(s)
		return r
	}
	change := func(f func(*Status)) Status {
		s := well
		f(&s)
		return s
	}
	if !(&reporter{agent: b.agent}).due(well, now) {
		t.Error("none at the start")
	}
	for name, c := range map[string]struct {
		was, is Status
		after   time.Duration
		due     bool
	}{
		"all well":                  {well, well, reportEvery - 1, false},
		"a minute":                  {well, well, reportEvery, true},
		"clock went back":           {well, well, -time.Second, true},
		"cut off":                   {well, change(func(s *Status) { s.Uplink.Connected = false }), time.Second, true},
		"a batch is parked":         {well, change(func(s *Status) { s.Uplink.Parked = 1 }), time.Second, true},
		"a backlog":                 {change(backlog), change(backlog), reportUnwell, true},
		"a backlog, told just now":  {change(backlog), change(backlog), reportUnwell - 1, false},
		"a backlog, nobody listens": {change(alone), change(alone), reportEvery - 1, false},
		"not enrolled":              {change(func(s *Status) { s.Gateway = "" }), change(func(s *Status) { s.Gateway = "" }), reportUnwell, true},
	} {
		if got := told(c.was).due(c.is, now.Add(c.after)); got != c.due {
			t.Errorf("%s: due %t", name, got)
		}
	}
}

func backlog(s *Status) {
	s.Buffer.Lanes = append(s.Buffer.Lanes[:0:0], s.Buffer.Lanes...)
	s.Buffer.Lanes[telemetry.LaneVitals].Waiting = backlogOfNote + 1
}

func alone(s *Status) {
	backlog(s)
	s.Uplink.Connected = false
}

// TestReportsHoldNothingOfMessages: neither patient nor value nor control id, sealed or not.
func TestReportsHoldNothingOfMessages(t *testing.T) {
	b := newBedside(t, filepath.Join(t.TempDir(), "agent"), newKey(t))
	raw := bytes.Replace(oru("CANARY-CONTROL", "CANARY-VALUE"), []byte("WL1^"), []byte("CANARY-PATIENT^"), 1)
	if err := b.accept(raw); err != nil {
		t.Fatal(err)
	}
	s := b.agent.status()
	report, _ := b.agent.report(s, 1, telemetry.Spans{})
	plain, err := telemetry.Encode(telemetry.Batch{Report: report})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := telemetry.Decode(plain)
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%+v", *batch.Report); strings.Contains(text, "CANARY") || strings.Contains(text, "WL1") {
		t.Error(text)
	}
}

// send has a report made.
func send(t *testing.T, b *bedside) {
	t.Helper()
	if err := b.agent.evicting(); err != nil {
		t.Fatal(err)
	}
}

// TestReportsTellOfBoundDevices: a device with an id of its own is a source of the report, with its bed; what only the port knows stands with it.
func TestReportsTellOfBoundDevices(t *testing.T) {
	at := time.UnixMilli(1795357850000)
	got := sourceReports(Status{Sources: map[string]source.Stats{
		"port": {Listening: true, Shared: true, BedConflicts: 2, LastBedConflict: at, Slowed: 3, LastSlowed: at, TLS: &source.TLSStats{Refused: 4, LastRefused: at, Expired: 1}},
		"bed":  {Listening: true, Port: "port", Bed: "ICU-7", Received: 9, LastReceived: at},
	}})
	if len(got) != 2 || got[0].ID != "bed" || got[0].Bed != "ICU-7" || got[0].Received != 9 || got[0].Shared || !got[1].Shared || got[1].Received != 0 {
		t.Fatalf("%+v", got)
	}
	for _, r := range got {
		if r.Conflicts != 2 || r.ConflictAt != 1795357850000 || r.Slowed != 3 || r.Unproven != 4 || r.UnprovenAt != 1795357850000 || r.Expired != 1 {
			t.Errorf("%+v", r)
		}
	}
}
