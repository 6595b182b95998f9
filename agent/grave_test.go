package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/buffer"
	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/enroll/wipe"
	"wardlink/internal/swtpmtest"
	"wardlink/telemetry"
)

// fill makes what an agent keeps, and what is not the agent's.
func (b *box) fillState() {
	b.Helper()
	for _, name := range []string{"buffer/vitals/1.seg", "config.a", "config.b", "sealings.a", "log.a", "identity/device.tpm", "identity/board-X/ak.tpm", "slots/a/wardlink-agent", "time.a"} {
		path := filepath.Join(b.cfg.State, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
			b.Fatal(err)
		}
	}
}

func (b *box) left() (names []string) {
	b.Helper()
	entries, err := os.ReadDir(b.cfg.State)
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "time") && !strings.HasPrefix(e.Name(), "kit") && e.Name() != filepath.Base(b.cfg.Socket()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestWipeGoesOnAfterACrash: from the mark on, every start goes on with the wiping and begins nothing; keys go last, and not before the word
// that they sign; what is not the agent's stays.
func TestWipeGoesOnAfterACrash(t *testing.T) {
	b := newBox(t, t.TempDir())
	b.fillState()
	if err := (&grave{Order: []byte("an order"), Waiting: 3}).store(b.cfg.State); err != nil {
		t.Fatal(err)
	}
	again := func() *Agent {
		t.Helper()
		a, err := New(b.cfg, slog.New(slog.DiscardHandler))
		if err != nil || a.grave == nil || a.buf != nil {
			t.Fatalf("%+v, %v: a wiped gateway began anew", a, err)
		}
		return a
	}
	a := again()
	// The TPM is away, so nobody can sign yet: the keys must stay until somebody has.
	if err := a.erase(t.Context()); err == nil {
		t.Error("wiped without its TPM")
	}
	if got := b.left(); !slices.Equal(got, []string{"decommissioned", "identity", "slots"}) {
		t.Errorf("left: %q", got)
	}
	if s := again().describe(); s.Wiped != "no" || !s.Revoked || s.CutOff != "decommissioned" {
		t.Errorf("%+v", s)
	}
	// The word is kept, and a crash comes before, and then in the middle of the end of the keys.
	word := []byte("a word")
	if err := (&grave{Order: []byte("an order"), Word: word}).store(b.cfg.State); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(b.cfg.State, "identity", "device.tpm")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a = again()
		if err := a.erase(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := b.left(); !slices.Equal(got, []string{"decommissioned", "slots"}) || !a.grave.Erased || string(a.grave.Word) != "a word" {
			t.Errorf("left: %q, %+v", got, a.grave)
		}
	}
	if f := again().describe().Examine(a.started); len(f) != 1 || f[0].Level != Stops || !strings.Contains(f[0].Found, "has not heard") {
		t.Errorf("%+v", f)
	}
	// A mark that cannot be read is one all the same.
	if err := os.WriteFile(filepath.Join(b.cfg.State, graveFile), []byte("\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(b.cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "decommissioned") {
		t.Errorf("%v", err)
	}
}

// TestOrdersAreJudged: what is no order for this board ends nothing, and a flood of documents blocks nobody.
func TestOrdersAreJudged(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{log: slog.New(slog.DiscardHandler), orders: make(chan []byte, 1)}
	a.kit.ConfigKey = public
	doc, err := wipe.Sign(wipe.Order{Gateway: "gw-1", Boards: [][]byte{make([]byte, 32)}, Reason: "x"}, private)
	if err != nil {
		t.Fatal(err)
	}
	a.stopSources = func() { t.Error("the sources were stopped") }
	for range 100 {
		a.order(doc)
		a.order(nil)
		a.order(make([]byte, wipe.MaxDocument+1))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.runOrders(ctx) }()
	a.orders <- []byte("no order") // once this is taken the first was judged
	a.orders <- []byte("no order")
	cancel()
	if err := <-done; err != nil || errors.Is(err, errWiped) || a.grave != nil {
		t.Errorf("%v: obeyed although no TPM says which board this is", err)
	}
}

// TestARefusalCutsNoDrainShort: an order to drain first destroys nothing that waits, whatever refusal it comes with: whoever answers for the
// hospital is not who signs. Only an order that says so does.
func TestARefusalCutsNoDrainShort(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, t.TempDir())
	b.start()
	if !b.send(message("M1", 100), func() bool { return false }) {
		t.Fatal("not accepted")
	}
	b.stop()
	b.cfg.TPM = swtpmtest.Start(t).Path
	a, err := New(b.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.buf.Close()
	if a.dev, err = tpm.Open(t.Context(), b.cfg.TPM); err != nil {
		t.Fatal(err)
	}
	defer a.dev.Close()
	ek, err := a.dev.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.kit.ConfigKey, a.stopSources = public, func() {}
	order := func(drain bool) []byte {
		doc, err := wipe.Sign(wipe.Order{Gateway: "gw-1", Boards: [][]byte{ek.Hash[:]}, Reason: "x", Drain: drain}, private)
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.runOrders(ctx) }()
	for range 2 {
		a.identityTrouble(&enroll.CutOffError{What: "decommissioned", Reason: "x", Order: order(true)})
		select {
		case err := <-done:
			t.Fatalf("%v: %+v", err, a.grave)
		case <-time.After((drainLooks + 1) * drainLook):
		}
	}
	a.identityTrouble(&enroll.CutOffError{What: "decommissioned", Reason: "x", Order: order(false)})
	if err := <-done; !errors.Is(err, errWiped) || a.grave == nil || a.grave.Waiting == 0 {
		t.Errorf("%v, %+v", err, a.grave)
	}
}

// TestWhatIsDestroyedIsCountedAtTheEnd: what was accepted while the order was being kept is destroyed too, and counts. The agent's reports of itself
// do not.
func TestWhatIsDestroyedIsCountedAtTheEnd(t *testing.T) {
	b := newBox(t, t.TempDir())
	b.start()
	if !b.send(message("M1", 100), func() bool { return false }) {
		t.Fatal("not accepted")
	}
	b.stop()
	a, err := New(b.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.buf.Close()
	a.ordered = []byte("an order")
	if err := a.bury(t.Context()); !errors.Is(err, errWiped) {
		t.Fatal(err)
	}
	before := a.grave.Waiting
	a.reports.last()
	if a.recount(); a.grave.Waiting != before || a.backlog() != before+2 { // with the report of the epoch before
		t.Errorf("%d batches of a device, then %d, and %d in all", before, a.grave.Waiting, a.backlog())
	}
	if err := a.buf.Append([]buffer.Item{{ID: buffer.ID{Epoch: [16]byte{9}, Lane: uint8(telemetry.LaneVitals)}, Frame: make([]byte, 100), Record: []byte{1}}}); err != nil {
		t.Fatal(err)
	}
	a.recount()
	stored, err := openGrave(b.cfg.State)
	if err != nil || before == 0 || a.grave.Waiting != before+1 || stored.Waiting != before+1 || string(stored.Order) != "an order" {
		t.Errorf("%d before, then %+v, on disk %+v, %v", before, a.grave, stored, err)
	}
}

func TestMain(m *testing.M) { swtpmtest.Main(m) }
