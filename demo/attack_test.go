package demo

import (
	"encoding/json"
	"strings"
	"testing"

	"wardlink/server/api/client"
)

// TestRefusalsAreFoundByActorAndReason: what is not quite the attack's refusal does not stand for it.
func TestRefusalsAreFoundByActorAndReason(t *testing.T) {
	th := &theatre{fleet: []*gateway{{name: "gw-01"}}}
	before, after := th.trials()
	all := append(before, after...)
	if len(all) != attacks {
		t.Fatalf("%d attacks, and the summary wants %d", len(all), attacks)
	}
	topic := all[1]
	good := logged{Leaf: 39, Type: "refused", Actor: "spiffe://demo.wardlink.internal/gateway/gw-mallory", Target: "gw-01", Outcome: "denied",
		Reason: "topic belongs to another gateway", Peer: "127.0.0.1:4"}
	var r Refusal
	if !topic.find([]logged{{Leaf: 1}, good}, &r) || r.Leaf != 39 || r.Actor != good.Actor || r.Reason != good.Reason || r.Peer != good.Peer {
		t.Errorf("not found: %+v", r)
	}
	for name, change := range map[string]func(*logged){
		"another type":    func(l *logged) { l.Type = "refused.peers" },
		"another actor":   func(l *logged) { l.Actor = "peer" },
		"another target":  func(l *logged) { l.Target = "gw-02" },
		"another reason":  func(l *logged) { l.Reason = "lane is not allowed to this gateway" },
		"another outcome": func(l *logged) { l.Outcome = "success" },
	} {
		l, r := good, Refusal{}
		change(&l)
		if topic.find([]logged{l}, &r) || r.Leaf != 0 {
			t.Errorf("%s: found, %+v", name, r)
		}
	}
	// What the tool prints is what is read here.
	var l logged
	line := `{"leaf":7,"type":"refused","actor":"a","serial":"s","peer":"p","target":"t","outcome":"denied","reason":"r"}`
	if err := json.NewDecoder(strings.NewReader(line)).Decode(&l); err != nil || l != (logged{7, "refused", "a", "p", "t", "denied", "r", "s"}) {
		t.Errorf("%+v, %v", l, err)
	}
}

// TestTableLinesUp: every row has its figure in the same column, whatever it is.
func TestTableLinesUp(t *testing.T) {
	var out strings.Builder
	th := &theatre{Options: Options{Out: &out}, summary: Summary{
		SamplesSent: 1_234_567, OutageSeconds: 61.25, BacklogPeak: 1, AccountLooks: 600, Chaos: 3600, Seed: 999_999, RevokeSeconds: 1.5,
		Account:  []Accounted{{Balance: client.Balance{Lane: "waveform", Assigned: 123_456_789, Journaled: 1}}, {Balance: client.Balance{Lane: "self", Void: 12345}}},
		Refusals: []Refusal{{Case: "certificate of a foreign CA", Refused: true, Leaf: 123456, Actor: "peer", Peer: "127.0.0.0/24", Reason: "x"}, {Case: "y"}},
	}}
	th.table()
	main, attacks, _ := strings.Cut(out.String(), "\n\n  attack")
	main, accounts, _ := strings.Cut(main, "\n\n  batches ")
	for _, line := range strings.Split(strings.Trim(main, "\n"), "\n") {
		if len(line) < 37 || line[34] == ' ' || line[35] != ' ' || line[36] != ' ' {
			t.Errorf("%q", line)
		}
	}
	accounts = "  batches " + accounts
	for row := range strings.SplitSeq(accounts, "\n") {
		for i, r := range strings.SplitN(accounts, "\n", 2)[0] {
			if strings.ContainsRune("=(+", r) && row[i] != byte(r) {
				t.Errorf("column %d of %q is not %q", i, row, r)
			}
		}
	}
	rows := strings.Split(strings.TrimRight("  attack"+attacks, "\n"), "\n")
	for _, at := range []int{30, 31, 40, 47, 48, 69, 70} {
		for _, row := range rows {
			if row = row + strings.Repeat(" ", 80); row[at] != ' ' {
				t.Errorf("column %d of %q is not blank", at, row)
			}
		}
	}
}
