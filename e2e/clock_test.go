package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/agent"
	"wardlink/internal/durable"
)

// at1970 is the wall clock of a gateway without a battery: it began to run at 1970 a minute ago.
func at1970() func() time.Time {
	behind := time.Since(time.Unix(60, 0))
	return func() time.Time { return time.Now().Add(-behind) }
}

// boot runs the box's agent in this process, by a wall clock of the test's. The agent, its TPM and the server are real.
func (b *box) boot(wall func() time.Time) (stop func()) {
	b.t.Helper()
	return b.bootAs(func(cfg *agent.Config) { cfg.Wall = wall })
}

// bootAs runs the box's agent in this process, with a configuration that no file can say.
func (b *box) bootAs(change func(*agent.Config)) (stop func()) {
	b.t.Helper()
	cfg, err := agent.LoadConfig(b.config())
	if err != nil {
		b.t.Fatal(err)
	}
	change(&cfg)
	log, err := os.OpenFile(filepath.Join(b.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	a, err := agent.New(cfg, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("agent: %v", err)
		}
		_ = log.Close()
	}
	b.t.Cleanup(stop)
	return stop
}

// clock is what 'wardlink-agent clock' says.
func (b *box) clock() (c agent.ClockFacts) {
	b.t.Helper()
	out := b.must("wardlink-agent", "clock", "--json", "--config", b.config())
	if err := json.Unmarshal(out, &c); err != nil {
		b.t.Fatal(err)
	}
	return c
}

// timeless delivers a message in which the device says no time at all.
func (b *box) timeless(control string) {
	b.t.Helper()
	answer := b.exchange("MSH|^~\\&|MON|ICU|WL|WL|||ORU^R01^ORU_R01|" + control + "|T|2.6|||AL|NE\r" +
		"PID|||CANARY7^^^HOSP&1.2.3&ISO\rOBR|1|||X\r" +
		"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|61|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\r")
	if !strings.Contains(answer, "MSA|CA|"+control) {
		b.t.Fatalf("acknowledgement %q", answer)
	}
}

// arrived is when the gateway had the reading, "" if nothing says so. Extensions have no order.
func (r reading) arrived() string {
	for _, e := range r.Extension {
		if e.URL == "urn:wardlink:gateway-received" {
			return e.ValueInstant
		}
	}
	return ""
}

// TestBootIn1970: a gateway that has never been anywhere and whose clock shows 1970 keeps what it is given, enrols, and delivers. The
// server does not vouch for its own clock at first: then what it acknowledges is not deleted. Once an operator has looked at the server's
// clock the gateway is told the time, the session counts in full, and the times of that boot are repaired.
func TestBootIn1970(t *testing.T) {
	t.Parallel()
	h := initHospital(t)
	// The server vouched for its clock last ten days ago.
	kept, _, err := durable.OpenAB(filepath.Join(h.server(), "clock"), 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := kept.Store(binary.BigEndian.AppendUint64(nil, uint64(time.Now().Add(-240*time.Hour).UnixMilli()))); err != nil {
		t.Fatal(err)
	}
	w := wardOf(t, h)
	b := w.box
	stop := b.boot(at1970())
	before := time.Now()
	b.timeless("M1")
	if ack := b.send("M2"); !strings.Contains(ack, "MSA|CA|M2") {
		t.Fatalf("acknowledgement %q", ack)
	}
	after := time.Now()
	w.register()
	w.awaitObservations(2)
	if c := b.clock(); c.Trusted || !c.Behind || c.Wall.Year() != 1970 || c.Floor.Year() < 2025 || !strings.Contains(c.Trouble, "vouch") {
		t.Errorf("%+v; expected a clock that knows that it knows nothing", c)
	}
	if n := w.backlog(context.Background()); n == 0 {
		t.Error("batches were deleted on the word of a server whose dates nobody could check")
	}
	if out := string(h.must("wardlink", "--operator", h.operator(), "clock")); !strings.Contains(out, "clock confirm") {
		t.Errorf("wardlink clock says nothing to do:\n%s", out)
	}
	if o := w.find("61"); o.arrived() != "" {
		t.Errorf("a time of arrival before anybody could know it: %+v", o.Extension)
	}

	h.must("wardlink", "--operator", h.operator(), "clock", "confirm")
	w.awaitDelivered()
	c := b.clock()
	if wrong := time.Since(c.Now).Abs(); !c.Trusted || c.Offset == nil || c.Wall.Year() != 1970 || wrong > 5*time.Second {
		t.Errorf("%+v, wrong by %v; expected the hospital's time", c, wrong)
	}
	w.await("repaired times", func(context.Context) (bool, error) {
		arrived := w.find("61").arrived()
		if arrived == "" {
			return false, nil
		}
		at, err := time.Parse(time.RFC3339, arrived)
		// Within what the answer took to travel, and what the test took to send.
		if err != nil || at.Before(before.Add(-2*time.Second)) || at.After(after.Add(2*time.Second)) {
			t.Errorf("repaired to %q, %v; expected between %v and %v", arrived, err, before, after)
		}
		return true, nil
	})
	if o := w.find("72"); o.EffectiveDateTime != "2026-11-22T12:00:00.000Z" || o.arrived() != "" {
		t.Errorf("%+v; expected the device's own time and nothing of the gateway's", o)
	}

	// The next boot, again in 1970 and without a network: what was known is the floor, and everything is kept and delivered later.
	stop()
	h.proc.Stop()
	stop = b.boot(at1970())
	b.timeless("M3")
	if c := b.clock(); c.Trusted || c.Floor.Before(before.Add(-time.Minute)) || c.FloorFrom != "the last trusted time" {
		t.Errorf("%+v; expected the floor to be the last trusted time", c)
	}
	h.run()
	w.awaitDelivered()
	w.awaitObservations(3)
	if c := b.clock(); !c.Trusted {
		t.Errorf("%+v", c)
	}
	// The certificate is renewed by a machine whose clock still shows 1970: one that is not admitted any more asks for another.
	ends := func() (s agent.Status) {
		if err := json.Unmarshal(b.must("wardlink-agent", "status", "--json", "--config", b.config()), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	former := ends().NotAfter
	h.must("wardlink", "--operator", h.operator(), "gateway", "suspend", "icu-7", "--reason", "test")
	w.await("the refusal", func(context.Context) (bool, error) { return ends().CutOff == "suspended", nil })
	h.must("wardlink", "--operator", h.operator(), "gateway", "resume", "icu-7")
	w.await("another certificate", func(context.Context) (bool, error) {
		s := ends()
		return s.NotAfter != nil && s.NotAfter.After(*former) && s.Uplink.Connected && s.Time.Wall.Year() == 1970, nil
	})
	stop()
	h.proc.Stop()
	h.must("wardlink", "audit", "verify", "--dir", h.server())
	for act, actor := range map[string]string{"clock.doubted": `"server"`, "clock.confirmed": "operator/operator"} {
		out := string(h.must("wardlink", "audit", "list", "--json", "--dir", h.server(), "--type", act))
		if strings.Count(out, act) != 1 || !strings.Contains(out, actor) {
			t.Errorf("%s by %s in the log:\n%s", act, actor, out)
		}
	}
}
