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
	kit := kitFor(t, "ward.example", key.Public())
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
	b.agent.reports.send(time.Now())
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
	b.agent.reports.send(time.Now())
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
		b.agent.reports.send(time.Now())
	}
	got, numbers := b.reports() // and now it is given out
	if fmt.Sprint(numbers) != "[4]" {
		t.Fatalf("reports %v wait; expected the last alone", numbers)
	}
	if self := lane(t, got[0].Report, telemetry.LaneSelf, telemetry.Epoch{}); self.Assigned != 5 || fmt.Sprint(self.Void) != "{[{0 3}] false}" {
		t.Errorf("%+v", self)
	}
	// One that is on its way is not withdrawn.
	b.agent.reports.send(time.Now())
	_, numbers = b.reports()
	if fmt.Sprint(numbers) != "[5]" || b.buf.Stats().Lanes[telemetry.LaneSelf].Waiting != 2 {
		t.Errorf("reports %v, %d wait", numbers, b.buf.Stats().Lanes[telemetry.LaneSelf].Waiting)
	}
	b.agent.reports.send(time.Now())
	b.agent.reports.send(time.Now())
	got, numbers = b.reports()
	if self := lane(t, got[0].Report, telemetry.LaneSelf, telemetry.Epoch{}); fmt.Sprint(numbers) != "[7]" || fmt.Sprint(self.Void) != "{[{0 3} {6 6}] false}" {
		t.Errorf("reports %v: %+v", numbers, self)
	}
}

// TestAFullBufferIsReported: the numbers of what could not be kept are void, and the report has room where telemetry has none.
func TestAFullBufferIsReported(t *testing.T) {
	state, key := filepath.Join(t.TempDir(), "agent"), newKey(t)
	newBedside(t, state, key).stop()
	// A file that was set aside takes most of the room, so that the rest is full soon.
	aside, err := os.Create(filepath.Join(state, "buffer", "vitals-00000000000000aa.seg.damaged"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Fallocate(int(aside.Fd()), 0, 0, 52<<20), aside.Close()); err != nil {
		t.Fatal(err)
	}
	b := newBedside(t, state, key)
	b.agent.reports.send(time.Now())
	rnd := mrand.NewChaCha8([32]byte{})
	noise := make([]byte, 30<<10)
	accepted := uint64(0)
	for i := range 10_000 {
		_, _ = rnd.Read(noise)
		err := b.accept(append(oru(fmt.Sprint("F", i), "72"), fmt.Appendf(nil, "ZZZ|%x\r", noise)...))
		if errors.Is(err, source.ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		accepted++
	}
	b.agent.reports.send(time.Now())
	got, _ := b.reports()
	if len(got) != 1 {
		t.Fatalf("%d reports", len(got))
	}
	r := got[0].Report
	v := lane(t, r, telemetry.LaneVitals, telemetry.Epoch{})
	if v.Assigned != accepted+1 || v.Sealed != accepted || v.Failed != 1 || v.Waiting != accepted ||
		fmt.Sprint(v.Void.Runs) != fmt.Sprintf("[{%d %d}]", accepted, accepted) || r.Buffer.Fault != "the buffer is full" {
		t.Errorf("%d accepted: %+v, %+v", accepted, v, r.Buffer)
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
	plain, err := telemetry.Encode(telemetry.Batch{Report: b.agent.report(s, 1, telemetry.Spans{})})
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
