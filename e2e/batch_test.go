package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/child"
)

type approvalReport struct {
	Counts map[string]int `json:"counts"`
	Rows   []struct {
		ID, Result, Reason string
		By                 string `json:"matched_by"`
	} `json:"rows"`
	Failed string `json:"failed_rows"`
}

// TestBatchApproval: three gateways are admitted from one file, one of them only once its row is mended; what stands is left alone.
func TestBatchApproval(t *testing.T) {
	t.Parallel()
	// What a box says of its serial number is what its service manager passed to it, here the same for all three.
	credentials := t.TempDir()
	if err := os.WriteFile(filepath.Join(credentials, "serial"), []byte("S-4711\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHospital(t)
	boxes := []*box{h.newBox("one", h.kit()), h.newBox("two", h.kit()), h.newBox("three", h.kit())}
	for _, b := range boxes {
		var err error
		b.agent, err = child.Start(b.name, filepath.Join(b.dir, "agent.log"), "env", "CREDENTIALS_DIRECTORY="+credentials, program("wardlink-agent"), "run", "--config", b.config())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.agent.Stop)
	}
	// The TPM is the running agent's alone; what it is called is in its status.
	short := make([]string, len(boxes))
	for i, b := range boxes {
		h.await("the waiting list", func(ctx context.Context) (bool, error) {
			s, err := b.status(ctx)
			short[i] = s.Waiting
			return err == nil && s.Waiting != "", nil
		})
	}
	var list struct {
		Waiting []struct {
			Fingerprint string `json:"fingerprint"`
			EK          string `json:"ek_sha256"`
			Serial      string `json:"claimed_serial"`
		} `json:"waiting"`
	}
	h.ask(&list, "gateway", "list")
	eks := map[string]string{}
	for _, w := range list.Waiting {
		eks[w.Fingerprint] = w.EK
		if w.Serial != "S-4711" {
			t.Errorf("%s says that its serial number is %q", w.Fingerprint, w.Serial)
		}
	}
	if out, err := exec.CommandContext(t.Context(), program("wardlink-agent"), "doctor", "--config", boxes[0].config()).Output(); !strings.Contains(string(out), "fingerprint "+short[0]) || !strings.Contains(string(out), "▀▀▀▀▀▀▀▀") {
		t.Errorf("the doctor of a gateway that waits shows no fingerprint for a scanner: %v\n%s", err, out)
	}
	dir := filepath.Join(h.dir, "batch")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "gateways.csv")
	rows := "id,site,ward,ek_sha256,fingerprint\nicu-1,main,ICU 3," + eks[short[0]] + ",\nicu-2,main,ICU 3,," + short[1] + "\nicu-3,main,ICU 3,,AAAA-AAAA-AAAA-AAAA\n"
	if err := os.WriteFile(file, []byte(rows), 0o600); err != nil {
		t.Fatal(err)
	}
	// The engineer before the third box watches it come up, until the hospital says that it has seen it.
	watching := make(chan string, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		out, err := child.Output(ctx, program("wardlink-agent"), "doctor", "--watch", "--config", boxes[2].config())
		watching <- fmt.Sprintf("%s\n%v", out, err)
	}()
	approve := func(file string) (string, error) {
		out, err := child.Output(t.Context(), program("wardlink"), "--operator", h.operator(), "gateway", "approve", "--batch", file)
		return string(out), err
	}
	read := func() (r approvalReport) {
		data, err := os.ReadFile(filepath.Join(dir, "gateways.report.json"))
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	claimed := filepath.Join(dir, "claimed.csv")
	if err := os.WriteFile(claimed, []byte("id,serial\nicu-9,S-4711\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := child.Output(t.Context(), program("wardlink"), "--operator", h.operator(), "gateway", "approve", "--batch", claimed, "--trust-serial", "127.0.0.0/8"); err == nil || !strings.Contains(string(out), "3 waiting TPMs claim this serial number") {
		t.Errorf("three boxes claim one serial number: %v\n%s", err, out)
	}
	out, err := approve(file)
	if err == nil || !strings.Contains(err.Error(), "gateways.failed.csv") {
		t.Errorf("a batch with a wrong row succeeds: %v\n%s", err, out)
	}
	r := read()
	if r.Counts["approved"] != 2 || r.Counts["absent"] != 1 || r.Rows[0].By != "ek_sha256" || r.Rows[1].By != "fingerprint" || r.Rows[2].Result != "absent" {
		t.Errorf("report %+v", r)
	}
	failed := filepath.Join(dir, "gateways.failed.csv")
	text, err := os.ReadFile(failed)
	if err != nil || strings.Count(string(text), "\n") != 2 || !strings.Contains(string(text), "icu-3") || !strings.Contains(string(text), "no TPM waits") {
		t.Fatalf("failed rows: %v\n%s", err, text)
	}
	if err := os.WriteFile(failed, []byte(strings.Replace(string(text), "AAAA-AAAA-AAAA-AAAA", short[2], 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := approve(failed); err != nil {
		t.Errorf("the mended row: %v\n%s", err, out)
	}
	if _, err := os.Stat(failed); !os.IsNotExist(err) {
		t.Errorf("no row has failed, but its file is there: %v", err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(rows, "AAAA-AAAA-AAAA-AAAA", short[2], 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := approve(file); err != nil || !strings.Contains(out, "0 approved, 3 unchanged, 0 failed") {
		t.Errorf("the same again: %v\n%s", err, out)
	}
	for i, b := range boxes {
		h.await("enrolment", func(ctx context.Context) (bool, error) {
			s, err := b.status(ctx)
			return err == nil && s.Uplink.Connected && s.Gateway == []string{"icu-1", "icu-2", "icu-3"}[i], nil
		})
	}
	seen := <-watching
	for _, want := range []string{"waits approved: waits under the fingerprint " + short[2], "ok    approved: as gateway icu-3", "the hospital saw the first heartbeat of icu-3 at ", "\n<nil>"} {
		if !strings.Contains(seen, want) {
			t.Errorf("no %q in\n%s", want, seen)
		}
	}
	h.await("the events", func(context.Context) (bool, error) {
		approved, denied := 0, 0
		for _, it := range h.audit("--type", "gateway.approved") {
			switch it.Outcome {
			case "success":
				approved++
			case "denied":
				denied++
			}
		}
		return approved == 3 && denied == 2, nil
	})
}

// TestBootPartition: what an engineer puts on the card is what a gateway reads.
func TestBootPartition(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	card := filepath.Join(h.dir, "card")
	if err := os.Mkdir(card, 0o700); err != nil {
		t.Fatal(err)
	}
	yaml := filepath.Join(h.dir, "agent.yaml")
	write := func(text string) {
		if err := os.WriteFile(yaml, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	provision := func(args ...string) (string, error) {
		out, err := child.Output(t.Context(), program("wardlink"), append([]string{"--operator", h.operator(), "provision", "kit"}, args...)...)
		return string(out), err
	}
	write("sources: [{id: bed-1, mllp: '2575'}]")
	if _, err := provision("--boot", card, "--agent", yaml); err == nil || !strings.Contains(err.Error(), "sources[0]: mllp") {
		t.Errorf("a wrong configuration goes onto the card: %v", err)
	}
	if _, err := provision("--boot", filepath.Join(h.dir, "none")); err == nil || !strings.Contains(err.Error(), "mount the boot partition") {
		t.Errorf("without a card: %v", err)
	}
	write("state: " + filepath.Join(h.dir, "state") + "\nkit: " + filepath.Join(card, "wardlink", "kit.json") + "\nsources: [{id: bed-1, mllp: '127.0.0.1:0'}]\n")
	out, err := provision("--server", h.gateways, "--boot", card, "--agent", yaml)
	if err != nil {
		t.Fatal(err)
	}
	var held struct {
		Fingerprint, File string
		Servers           []string
	}
	if err := json.Unmarshal(h.must("wardlink-agent", "kit", "--json", "--config", filepath.Join(card, "wardlink", "agent.yaml")), &held); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "kit fingerprint "+held.Fingerprint) || len(held.Servers) != 1 || held.Servers[0] != h.gateways {
		t.Errorf("the tool says %q, the gateway reads %+v", out, held)
	}
}
