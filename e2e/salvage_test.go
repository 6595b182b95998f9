package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/child"
	"wardlink/server/api/client"
)

// salvageSaid is what the tests read of 'wardlink salvage --json'.
type salvageSaid struct {
	Gateway string `json:"gateway"`
	Lanes   []struct {
		Lane                                                    string
		Found, Delivered, Sent, Here, Refused, Damaged, Unknown uint64
	} `json:"lanes"`
	Refusals map[string]uint64 `json:"refusals"`
	Unsigned uint64            `json:"unsigned"`
	Problems []string          `json:"problems"`
}

func (s salvageSaid) sum() (found, delivered, sent, here, refused, damaged uint64) {
	for _, l := range s.Lanes {
		found, delivered, sent, here, refused, damaged = found+l.Found, delivered+l.Delivered, sent+l.Sent, here+l.Here, refused+l.Refused, damaged+l.Damaged
	}
	return
}

// salvaged runs the real tool on a card.
func (h *hospital) salvaged(args ...string) (said salvageSaid, code int, errs string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("wardlink"), append([]string{"--operator", h.operator(), "--json", "salvage"}, args...)...)
	var out, failed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failed
	err := cmd.Run()
	exit := (*exec.ExitError)(nil)
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &said); err != nil {
			h.t.Fatalf("%v\n%s", err, out.Bytes())
		}
	}
	return said, cmd.ProcessState.ExitCode(), failed.String()
}

// copied is a copy of what is on a card.
func copied(t *testing.T, from, name string) string {
	t.Helper()
	to := filepath.Join(filepath.Dir(from), name)
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		rel, rerr := filepath.Rel(from, path)
		if err = errors.Join(err, rerr); err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		if !e.Type().IsRegular() {
			return nil // the agent's socket
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// bytesOf is every file below a directory.
func bytesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	if err := walk(dir, func(path string, data []byte) { out[path] = string(data) }); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSalvage: a gateway takes messages in through an outage, is killed, starts again, and dies for good. Everything that its monitors were
// told is kept comes to the hospital from its card, once, through whatever the card went through; and what cannot be proven does not.
func TestSalvage(t *testing.T) {
	t.Parallel()
	w := wardOf(t, initHospital(t))
	b := w.box
	b.reportsOften()
	w.register()
	b.start()
	b.accepts("M1")
	b.awaitDelivered()
	w.proc.Stop()
	const first, all = 21, 41
	for n := 2; n <= first; n++ {
		b.accepts(fmt.Sprintf("M%d", n))
	}
	b.agent.Kill()
	b.start()
	for n := first + 1; n <= all; n++ {
		b.accepts(fmt.Sprintf("M%d", n))
	}
	if said, code, errs := w.salvaged("--dry-run", b.state()); code != 1 || !strings.Contains(errs, "in use") {
		t.Errorf("while the agent runs: %d %q %+v", code, errs, said)
	}
	w.awaitSignatures()
	b.agent.Kill()
	b.tpm.Stop()
	w.hospital.run()
	w.awaitAlone("the reading that was delivered", func() bool { _, n, _ := w.read(); return n == 1 })
	w.salvageWithoutSignatures(copied(t, b.state(), "unsigned"))
	w.gateway("revoke", "icu-7", "--reason", "dead")
	hurt := copied(t, b.state(), "damaged")
	if said, code, errs := w.salvaged(hurt); code != 1 || !strings.Contains(errs, "say --despite revoked") {
		t.Errorf("of a revoked gateway: %d %s %+v", code, errs, said)
	}
	w.salvageOfDamage(hurt)
	w.gateway("resume", "icu-7", "--reason", "only dead")

	card := copied(t, b.state(), "card")
	before := bytesOf(t, card)
	said, code, errs := w.salvaged(card)
	found, delivered, sent, here, refused, damaged := said.sum()
	if code != 0 || sent == 0 || here == 0 || refused+damaged != 0 || found != delivered+sent+here || len(said.Problems) > 0 {
		t.Errorf("salvage ends with %d %s: %+v", code, errs, said)
	}
	again, code, errs := w.salvaged(card)
	if _, _, sent2, here2, _, _ := again.sum(); code != 0 || sent2 != 0 || here2 != sent+here {
		t.Errorf("a second salvage ends with %d %s: %+v", code, errs, again)
	}
	for path, was := range before {
		if now, err := os.ReadFile(path); err != nil || string(now) != was {
			t.Errorf("%s was changed: %v", path, err)
		}
	}
	if len(bytesOf(t, card)) != len(before) {
		t.Error("files were made or removed on the card")
	}
	w.await("all readings, once", func(context.Context) (bool, error) {
		_, n, _ := w.read()
		return n >= all, nil
	})
	if _, n, _ := w.read(); n != all {
		t.Errorf("%d readings; expected %d", n, all)
	}
	w.balancedWithoutIt()
	w.salvageRefused(card)
	w.salvageIsProven(sent)
}

// awaitSignatures waits until the board, with no hospital in reach, has signed its sealing periods and said what it took in until now.
func (w *ward) awaitSignatures() {
	w.Helper()
	tries, reports := 0, uint64(0)
	w.awaitAlone("the signatures and a report", func() bool {
		tries++
		said, code, _ := w.salvaged("--dry-run", copied(w.T, w.box.state(), fmt.Sprintf("look-%d", tries)))
		if code != 0 || said.Gateway != "icu-7" || said.Unsigned > 0 {
			return false
		}
		for _, l := range said.Lanes {
			if l.Lane == "self" {
				if reports == 0 {
					reports = l.Found
				}
				return l.Found >= reports+2 // the second one was begun after the last message
			}
		}
		return false
	})
}

// awaitAlone is await while the server is down.
func (w *ward) awaitAlone(what string, ok func() bool) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := child.Until(ctx, what, nil, func(context.Context) (bool, error) { return ok(), nil }); err != nil {
		w.Fatal(err)
	}
}

// salvageWithoutSignatures: what the board did not sign is refused, but for the period that the hospital knows from a session.
func (w *ward) salvageWithoutSignatures(card string) {
	w.Helper()
	for _, suffix := range []string{".a", ".b"} {
		if err := os.Remove(filepath.Join(card, "sealings"+suffix)); err != nil && !os.IsNotExist(err) {
			w.Fatal(err)
		}
	}
	said, code, errs := w.salvaged(card)
	_, _, sent, _, refused, _ := said.sum()
	if code != 1 || sent == 0 || refused == 0 || len(said.Refusals) != 1 || len(said.Problems) == 0 {
		w.Errorf("without signatures: %d %s %+v", code, errs, said)
	}
	for reason := range said.Refusals {
		if !strings.Contains(reason, "no signature proves its sealing period") {
			w.Errorf("refused for %q", reason)
		}
	}
}

// salvageOfDamage: a page of the newest segment of vitals is gone, and so is which batches lie where.
func (w *ward) salvageOfDamage(card string) {
	w.Helper()
	files, err := filepath.Glob(filepath.Join(card, "buffer", "vitals-*.seg"))
	if err != nil || len(files) < 2 {
		w.Fatal(files, err)
	}
	victim := files[len(files)-1]
	data, err := os.ReadFile(victim)
	if err != nil {
		w.Fatal(err)
	}
	at := bytes.Index(data, []byte("WLF1"))
	if at < 0 {
		w.Fatalf("no frame in %s", victim)
	}
	clear(data[at&^4095 : at&^4095+4096])
	if err := os.WriteFile(victim, data, 0o600); err != nil {
		w.Fatal(err)
	}
	said, code, errs := w.salvaged("--despite", "revoked", card)
	if _, _, sent, here, refused, _ := said.sum(); code != 0 || sent == 0 || here == 0 || refused != 0 {
		w.Errorf("with a damaged segment: %d %s %+v", code, errs, said)
	}
	if len(said.Problems) == 0 || !strings.Contains(strings.Join(said.Problems, " "), filepath.Base(victim)) {
		w.Errorf("the damaged segment is not told: %+v", said)
	}
}

// balancedWithoutIt: the account of a gateway that will never report again balances by what its card held.
func (w *ward) balancedWithoutIt() {
	w.Helper()
	var a client.Account
	defer func() {
		if w.Failed() {
			w.Logf("the account of icu-7: %+v", a)
		}
	}()
	w.await("the account", func(context.Context) (bool, error) {
		a = w.accounted(w.T, "icu-7")
		whole := len(a.Epochs) > 0
		for _, e := range a.Epochs {
			whole = whole && e.Balances && e.Pending == 0 && e.Buffered == 0
		}
		return whole, nil
	})
	if v, ok := lane(a, "vitals"); !ok || v.Assigned != v.Stored || v.Lost+v.Void+v.Dead != 0 {
		w.Errorf("the account: %+v", a)
	}
}

// salvageRefused: cards of unknown gateways, others' names, gateways that were cut off, and people who are no operators.
func (w *ward) salvageRefused(card string) {
	w.Helper()
	bare := copied(w.T, card, "bare")
	if err := os.RemoveAll(filepath.Join(bare, "identity")); err != nil {
		w.Fatal(err)
	}
	expect := func(why string, args ...string) {
		w.Helper()
		if said, code, errs := w.salvaged(args...); code != 1 || !strings.Contains(errs, why) {
			w.Errorf("salvage %v: %d %q %+v; expected %q", args, code, errs, said, why)
		}
	}
	expect("name it with --gateway", bare)
	expect("the card is of gateway icu-7, not of icu-8", "--gateway", "icu-8", card)
	expect(`gateway "icu-9"`, "--gateway", "icu-9", bare)
	expect("no gateway's buffer is here", w.hospital.dir)

	// What another gateway sealed is not this one's, whoever says so.
	other := w.newBox("other", w.kit())
	other.enter("icu-8")
	said, code, errs := w.salvaged("--all", "--gateway", "icu-8", bare)
	if _, _, sent, here, refused, _ := said.sum(); code != 1 || sent+here != 0 || refused == 0 {
		w.Errorf("as another gateway's: %d %s %+v", code, errs, said)
	}
	for reason := range said.Refusals {
		if !strings.Contains(reason, "a key of another gateway") && !strings.Contains(reason, "no signature") {
			w.Errorf("refused for %q", reason)
		}
	}

	var file map[string]string
	data, err := os.ReadFile(w.operator())
	if err != nil || json.Unmarshal(data, &file) != nil {
		w.Fatal(err)
	}
	for field, name := range map[string]string{"certificate": "reader.crt", "key": "reader.key"} {
		pem, err := os.ReadFile(filepath.Join(w.hospital.dir, "reader", name))
		if err != nil {
			w.Fatal(err)
		}
		file[field] = string(pem)
	}
	if data, err = json.Marshal(file); err != nil {
		w.Fatal(err)
	}
	path := filepath.Join(w.hospital.dir, "reader.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.Fatal(err)
	}
	out, err := child.Output(context.Background(), program("wardlink"), "--operator", path, "salvage", card)
	if err == nil || !strings.Contains(err.Error(), "is no operator of ward.example") {
		w.Errorf("who is no operator: %v %s", err, out)
	}
}

// salvageIsProven: the acts are in the log, whose rows say who brought the batches, and it verifies.
func (w *ward) salvageIsProven(sent uint64) {
	w.Helper()
	list := func(args ...string) string {
		return string(w.must("wardlink", append([]string{"audit", "list", "--json", "--dir", w.server()}, args...)...))
	}
	var acts, refused string
	defer func() {
		if w.Failed() {
			w.Logf("the acts:\n%s\nrefused:\n%s", acts, refused)
		}
	}()
	w.await("the acts in the log", func(context.Context) (bool, error) {
		acts, refused = list("--type", "gateway.salvaged"), list("--type", "refused")
		return strings.Contains(acts, fmt.Sprintf(`"count":%d`, sent)) && strings.Contains(acts, `"denied"`) && strings.Contains(refused, "/reader"), nil
	})
	for _, want := range []string{"spiffe://ward.example/operator/operator", "not in the registry", `"despite":"revoked"`} {
		if !strings.Contains(acts, want) {
			w.Errorf("no act says %q", want)
		}
	}
	w.must("wardlink", "audit", "verify", "--dir", w.server())
	if rows := list("--publishes"); !strings.Contains(rows, `"salvaged"`) || !strings.Contains(rows, `"accepted"`) {
		w.Errorf("no row says that it was salvaged:\n%.2000s", rows)
	}
}
