package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wardlink/internal/child"
	"wardlink/internal/swtpm"
)

// byWard is how many readings the hospital sees in each ward.
func (w *ward) byWard() map[string]int {
	w.Helper()
	status, found, outcome := w.search()
	if status != 200 {
		w.Fatalf("FHIR answers %d %s", status, outcome)
	}
	out := map[string]int{}
	for _, r := range found {
		name := ""
		for _, e := range r.Extension {
			if strings.HasSuffix(e.URL, "/event-location") {
				name = e.Reference.Display
			}
		}
		out[name]++
	}
	return out
}

// awaitWards waits for all readings to be seen, each where it was taken in.
func (w *ward) awaitWards(want map[string]int) {
	w.Helper()
	var got map[string]int
	defer func() {
		if w.Failed() {
			w.Logf("seen: %v; expected %v", got, want)
		}
	}()
	w.await(fmt.Sprint("readings ", want), func(context.Context) (bool, error) {
		got = w.byWard()
		return maps.Equal(got, want), nil
	})
}

func (w *ward) gateway(args ...string) string {
	w.Helper()
	return string(w.must("wardlink", append([]string{"--operator", w.operator(), "gateway"}, args...)...))
}

// awaitIdentity waits for what a gateway says of itself.
func (b *box) awaitIdentity(want string) {
	b.t.Helper()
	b.await(want, func(ctx context.Context) (bool, error) {
		s, err := b.status(ctx)
		return err == nil && s.Identity == want, nil
	})
}

func (b *box) awaitDelivered() {
	b.t.Helper()
	b.await("delivery", func(ctx context.Context) (bool, error) {
		s, err := b.status(ctx)
		return err == nil && s.Uplink.Connected && s.Identity == "enrolled" && s.waiting() == 0, nil
	})
}

func (b *box) accepts(control string) {
	b.t.Helper()
	if ack := b.send(control); !strings.Contains(ack, "MSA|CA|"+control) {
		b.t.Errorf("acknowledgement %q", ack)
	}
}

func (b *box) fingerprint() string {
	b.t.Helper()
	var id struct {
		Fingerprint string `json:"fingerprint"`
	}
	if err := json.Unmarshal(b.must("wardlink-agent", "identity", "--json", "--config", b.config()), &id); err != nil {
		b.t.Fatal(err)
	}
	return id.Fingerprint
}

// TestGatewayLife: moved, suspended, its TPM cleared with a backlog on disk, resumed, given a new board with the old disk: every reading
// is seen once, in the ward in which it was taken in, and the old board is nobody any more.
func TestGatewayLife(t *testing.T) {
	t.Parallel()
	w := wardOf(t, initHospital(t))
	b := w.box
	w.register()
	b.start()
	b.accepts("M1")
	b.awaitDelivered()
	w.gateway("move", "icu-7", "--ward", "icu-9")
	b.accepts("M2")
	w.awaitWards(map[string]int{"w": 1, "icu-9": 1})

	// Suspended, and its TPM cleared while it is off with a backlog on its disk.
	w.gateway("suspend", "icu-7", "--reason", "looked at")
	b.awaitIdentity("suspended by the hospital: looked at")
	b.accepts("M3")
	w.gateway("move", "icu-7", "--ward", "icu-10")
	b.agent.Stop()
	if err := swtpm.Clear(b.tpm.Socket); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.awaitIdentity("suspended by the hospital: looked at")
	b.accepts("M4")
	w.gateway("resume", "icu-7")
	b.awaitDelivered()
	w.awaitWards(map[string]int{"w": 1, "icu-9": 2, "icu-10": 1})

	// The board breaks with a backlog on its disk, which goes into a new board.
	w.gateway("suspend", "icu-7", "--reason", "board breaks")
	b.awaitIdentity("suspended by the hospital: board breaks")
	b.accepts("M5")
	b.agent.Stop()
	second := *b
	second.name = "new"
	second.dir = filepath.Join(w.hospital.dir, "new")
	var err error
	if err = w.factory.Make(t.Context(), filepath.Join(second.dir, "tpm")); err != nil {
		t.Fatal(err)
	}
	if second.tpm, err = swtpm.Start(context.Background(), filepath.Join(second.dir, "tpm"), filepath.Join(second.dir, "t")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.tpm.Stop)
	text, err := os.ReadFile(b.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.state(), second.state()); err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.ReplaceAll(strings.ReplaceAll(string(text), b.tpm.Socket, second.tpm.Socket), b.state(), second.state()))
	if err := os.WriteFile(second.config(), text, 0o600); err != nil {
		t.Fatal(err)
	}
	second.start()
	second.awaitIdentity("waiting for approval")
	second.accepts("M6")
	said := w.gateway("replace", "icu-7", "--tpm", second.fingerprint(), "--reason", "board broken")
	if !strings.Contains(said, "never admitted again") || !strings.Contains(said, "still suspended") {
		t.Errorf("%s", said)
	}
	w.gateway("resume", "icu-7")
	second.awaitDelivered()
	w.awaitWards(map[string]int{"w": 1, "icu-9": 2, "icu-10": 3})

	// The old board, with a disk of its own, is told so; no operator can let it in.
	fingerprint := b.fingerprint()
	second.mllp, b.mllp = b.mllp, freeAddr(t)
	text, err = os.ReadFile(b.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.config(), []byte(strings.ReplaceAll(string(text), second.mllp, b.mllp)), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.awaitIdentity("replaced by the hospital: board broken")
	if _, err := child.Output(t.Context(), program("wardlink"), "--operator", w.operator(), "gateway", "approve", fingerprint, "--id", "icu-8"); err == nil {
		t.Error("the old board was approved under another id")
	}
	w.lifeInTheLog()
}

// lifeInTheLog: each act with its operator, and what the TPM showed.
func (w *ward) lifeInTheLog() {
	w.Helper()
	w.await("the log", func(context.Context) (bool, error) {
		n := map[string]int{}
		for _, it := range w.audit() {
			if it.Target == "icu-7" || it.Type == "refused" && strings.Contains(it.Reason, "replaced") {
				n[it.Type]++
			}
		}
		return n["gateway.moved"] == 2 && n["gateway.suspended"] == 2 && n["gateway.resumed"] == 2 && n["gateway.replaced"] == 1 &&
			n["tpm.cleared"] == 1 && n["refused"] > 0, nil
	})
	w.must("wardlink", "audit", "verify", "--dir", w.server())
}

// TestDecommission: it drains by default, wipes itself, and its signed word is in the log, as a proof that checks offline. With --now what
// waits is destroyed and counted. A gateway that never comes back is decommissioned without a word.
func TestDecommission(t *testing.T) {
	t.Parallel()
	w := wardOf(t, initHospital(t))
	b := w.box
	w.register()
	b.start()
	b.accepts("M1")
	b.awaitDelivered()
	if out, err := child.Output(t.Context(), program("wardlink"), "--operator", w.operator(), "gateway", "decommission", "icu-7", "--reason", "ward closed"); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Fatalf("nobody was asked: %s %v", out, err)
	}
	b.accepts("M2")
	w.gateway("decommission", "icu-7", "--reason", "ward closed", "--yes")
	b.awaitIdentity("decommissioned by the hospital: ward closed")
	w.awaitWards(map[string]int{"w": 2})
	b.awaitWord("icu-7")
	b.wiped(t)
	w.checkRecord("icu-7", "ward closed", true)

	// Its disk is as good as new, and its TPM is not: it is told again, also after a restart and with a disk of its own.
	b.agent.Stop()
	b.start()
	b.awaitIdentity("decommissioned by the hospital: ward closed")
	b.agent.Stop()
	if err := os.RemoveAll(b.state()); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.awaitMark()
	b.wiped(t)
	b.agent.Stop()
	if _, err := child.Output(t.Context(), program("wardlink"), "--operator", w.operator(), "gateway", "resume", "icu-7", "--reason", "x"); err == nil {
		t.Error("a decommissioned gateway was resumed")
	}

	// At once, with a backlog that is lost by that; and one that is never heard of again.
	lost := w.newBox("lost", w.kit())
	lost.deliverAs("icu-8")
	w.gateway("suspend", "icu-8", "--reason", "stolen?")
	lost.awaitIdentity("suspended by the hospital: stolen?")
	lost.accepts("M9")
	w.gateway("decommission", "icu-8", "--reason", "stolen", "--now", "--yes")
	lost.awaitWord("icu-8")
	lost.wiped(t)
	if end := w.checkRecord("icu-8", "stolen", true); end.Undelivered == 0 {
		t.Errorf("%+v; expected the batches that were destroyed", end)
	}
	csv := filepath.Join(w.hospital.dir, "gone.csv")
	if err := os.WriteFile(csv, []byte("id,ek_sha256,site,ward,profile\nicu-9,"+strings.Repeat("ab", 32)+",s,w,default\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.gateway("import", csv)
	w.gateway("decommission", "icu-9", "--reason", "burnt", "--now", "--yes")
	w.checkRecord("icu-9", "burnt", false)
	w.must("wardlink", "audit", "verify", "--dir", w.server())
}

// awaitWord waits until the hospital has the gateway's word.
func (b *box) awaitWord(id string) {
	b.t.Helper()
	b.await("the gateway's word", func(context.Context) (bool, error) {
		var g struct {
			State string `json:"state"`
			End   struct {
				Confirmed string `json:"confirmed"`
			} `json:"end"`
		}
		b.ask(&g, "gateway", "show", id)
		return g.State == "decommissioned" && g.End.Confirmed != "", nil
	})
}

// awaitMark waits until the agent says that everything is wiped.
func (b *box) awaitMark() {
	b.t.Helper()
	b.await("the wiping", func(ctx context.Context) (bool, error) {
		out, err := child.Output(ctx, program("wardlink-agent"), "status", "--json", "--config", b.config())
		return err == nil && strings.Contains(string(out), `"cut_off": "decommissioned"`) && (strings.Contains(string(out), `"wiped": "yes"`) || strings.Contains(string(out), `"wiped": "told"`)), nil
	})
}

// wiped looks at what is left on the disk.
func (b *box) wiped(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(b.state())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == "decommissioned", strings.HasPrefix(name, "time"), strings.HasPrefix(name, "kit"), strings.HasSuffix(name, ".sock"):
		default:
			t.Errorf("%s is left on the disk", name)
		}
	}
}

type endProof struct {
	OrderedBy   string `json:"ordered_by"`
	Reason      string `json:"reason"`
	Wiped       string `json:"wiped"`
	Undelivered int    `json:"destroyed_undelivered"`
}

// checkRecord takes the record of a gateway's end and has it checked offline.
func (w *ward) checkRecord(id, reason string, confirmed bool) endProof {
	w.Helper()
	file := filepath.Join(w.hospital.dir, id+".json")
	w.gateway("record", id, "--out", file)
	var checked struct {
		End endProof `json:"end"`
	}
	out := w.must("wardlink", "audit", "check", "--json", "--key", filepath.Join(w.server(), "public", "log.pub"), file)
	if err := json.Unmarshal(out, &checked); err != nil {
		w.Fatal(err)
	}
	if checked.End.Reason != reason || checked.End.OrderedBy != "spiffe://ward.example/operator/operator" || (checked.End.Wiped != "") != confirmed {
		w.Errorf("the record of %s: %s", id, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(data), `"index"`, `"index_"`, 1)), 0o600); err != nil {
		w.Fatal(err)
	}
	if _, err := child.Output(w.Context(), program("wardlink"), "audit", "check", "--key", filepath.Join(w.server(), "public", "log.pub"), file); err == nil {
		w.Error("a changed record is accepted")
	}
	return checked.End
}
