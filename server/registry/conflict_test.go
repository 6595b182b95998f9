package registry_test

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/server/registry"
)

// claimed lists the contentions of a day.
func (f *fixture) claimed(t *testing.T) (out []string) {
	t.Helper()
	list, err := f.Contentions(f.ctx, f.clock.Add(-24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if len(c.What()) > 200 || len(c.Mend()) > 200 {
			t.Errorf("%q, %q: longer than an alert's detail", c.What(), c.Mend())
		}
		out = append(out, fmt.Sprintf("%s %s %s %d", c.Claim, c.Gateway, c.Rival, c.Count))
	}
	return out
}

func (f *fixture) conflicts(t *testing.T) (n int) {
	for _, ev := range f.journal.Events(t) {
		if ev.Type == audit.IdentityConflict && ev.Outcome == audit.Denied {
			n++
		}
	}
	return n
}

// TestOneKeyForTwoGateways: whichever way an operator enters it, it stays with its owner, and the clash is noted although the act is undone.
func TestOneKeyForTwoGateways(t *testing.T) {
	f := one(t)
	if _, err := f.Import(f.ctx, operator, "10.0.0.9:1", []registry.Gateway{gateway("gw-2", "two")}); err != nil {
		t.Fatal(err)
	}
	results, err := f.Import(f.ctx, operator, "10.0.0.9:1", []registry.Gateway{gateway("gw-3", "one")})
	if err != nil || len(results) != 1 || results[0].Outcome != registry.Conflict {
		t.Fatalf("import %+v, %v", results, err)
	}
	if got := strings.Join(f.claimed(t), "; "); got != "one-key gw-1 gw-3 1" {
		t.Fatalf("noted %q", got)
	}
	_, err = f.Replace(f.ctx, operator, "10.0.0.9:1", "gw-2", "broken", []string{hexOf("one")})
	if !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), "belongs to gateway gw-1 already") {
		t.Fatalf("replace: %v", err)
	}
	batch, err := f.ApproveBatch(f.ctx, operator, "10.0.0.9:1", registry.Batch{Last: true, Rows: []registry.BatchRow{{Gateway: gateway("gw-4"), EK: hexOf("one")}}})
	if err != nil || batch[0].Outcome != registry.BatchRefused {
		t.Fatalf("batch %+v, %v", batch, err)
	}
	if got := strings.Join(f.claimed(t), "; "); got != "one-key gw-1 gw-2 1; one-key gw-1 gw-3 1; one-key gw-1 gw-4 1" || f.conflicts(t) != 3 {
		t.Fatalf("noted %q, %d events", got, f.conflicts(t))
	}
	if g, err := f.ByEK(f.ctx, ek("one")); err != nil || g.ID != "gw-1" {
		t.Errorf("owner %s, %v", g.ID, err)
	}
	f.clock = f.clock.Add(25 * time.Hour)
	if got := f.claimed(t); len(got) != 0 {
		t.Errorf("a day later: %q", got)
	}
}

// TestOneTPMWithTwoKeys: its RSA key was entered as one gateway and its ECC key as another; the attestation key shows that it is one TPM.
func TestOneTPMWithTwoKeys(t *testing.T) {
	f := one(t)
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-2", "two")}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Attested(f.ctx, "gw-1", ek("one"), []byte("this TPM's"), ""); err != nil {
			t.Fatal(err)
		}
		if err := f.Attested(f.ctx, "gw-2", ek("two"), []byte("this TPM's"), ""); !errors.Is(err, registry.ErrTwoGateways) {
			t.Fatalf("as the second gateway: %v", err)
		}
	}
	if got := strings.Join(f.claimed(t), "; "); got != "one-tpm gw-2 gw-1 2" || f.conflicts(t) != 1 {
		t.Errorf("noted %q, %d events", got, f.conflicts(t))
	}
	if err := f.Attested(f.ctx, "gw-2", ek("two"), []byte("another TPM's"), ""); err != nil {
		t.Errorf("another TPM as the second gateway: %v", err)
	}
	// The mend that the alert names: one of the two ends.
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE gateways SET state = 'decommissioned' WHERE id = 'gw-1'")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.Attested(f.ctx, "gw-2", ek("two"), []byte("this TPM's"), ""); err != nil {
		t.Errorf("once the first one is decommissioned: %v", err)
	}
}

// TestContentionsAreBounded: somebody with a TPM may claim what he likes as often as he likes.
func TestContentionsAreBounded(t *testing.T) {
	f := one(t)
	server := audit.Actor{ID: "server"}
	claim := registry.Contention{Claim: registry.ForeignDisk, Gateway: "gw-1", Rival: "AAAA", Peer: "192.0.2.1:9"}
	if err := f.Contend(f.ctx, server, registry.Contention{Claim: registry.ForeignDisk, Gateway: "nobody", Rival: "AAAA"}); err != nil {
		t.Fatal(err)
	}
	if got := f.claimed(t); len(got) != 0 {
		t.Fatalf("a disk of nobody's: %q", got)
	}
	for range 200 { // 100 minutes
		if err := f.Contend(f.ctx, server, claim); err != nil {
			t.Fatal(err)
		}
		f.clock = f.clock.Add(30 * time.Second)
	}
	if got := f.claimed(t); len(got) != 1 || got[0] != "foreign-disk gw-1 AAAA 100" || f.conflicts(t) != 1 {
		t.Errorf("noted %q, %d events", got, f.conflicts(t))
	}
	noted := func(c registry.Claim, gateway, rival string) {
		t.Helper()
		f.clock = f.clock.Add(time.Millisecond)
		if err := f.Contend(f.ctx, server, registry.Contention{Claim: c, Gateway: gateway, Rival: rival, Peer: "192.0.2.1:9"}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1010 {
		noted(registry.OneKey, "gw-1", fmt.Sprint("B", i))
	}
	if got := f.claimed(t); len(got) != 1001 || !strings.Contains(got[0], "B1009") || got[1000] != "foreign-disk gw-1 AAAA 100" {
		t.Errorf("%d are kept, from %q to %q", len(got), got[0], got[len(got)-1])
	}
}

// TestDisksAreOnlySomebodysWord: whoever shows TPMs and names disks at the port hides no contention that was proven, takes a gateway eight places and all of
// them two hundred, and none from a board that is registered.
func TestDisksAreOnlySomebodysWord(t *testing.T) {
	f := one(t)
	all := []registry.Gateway{gateway("gw-2", "two")}
	for i := range 40 {
		all = append(all, gateway(fmt.Sprint("bed-", i), fmt.Sprint("bed ", i)))
	}
	if _, err := f.Import(f.ctx, operator, "", all); err != nil {
		t.Fatal(err)
	}
	claim := func(c registry.Claim, gateway, rival string) {
		t.Helper()
		f.clock = f.clock.Add(time.Millisecond)
		if err := f.Contend(f.ctx, audit.Actor{ID: "server"}, registry.Contention{Claim: c, Gateway: gateway, Rival: rival}); err != nil {
			t.Fatal(err)
		}
	}
	claim(registry.OneTPM, "gw-1", "gw-2")
	claim(registry.ForeignDisk, "gw-1", "gw-2")
	for i := range 20 {
		claim(registry.ForeignDisk, "gw-1", fmt.Sprint("STRANGER-", i))
	}
	got := f.claimed(t)
	if len(got) != 9 || got[0] != "one-tpm gw-1 gw-2 1" || got[1] != "foreign-disk gw-1 STRANGER-19 1" || got[8] != "foreign-disk gw-1 gw-2 1" {
		t.Fatalf("about one gateway %q", got)
	}
	for i := range 400 {
		claim(registry.ForeignDisk, fmt.Sprint("bed-", i%40), fmt.Sprint("STRANGER-", i))
	}
	if got = f.claimed(t); len(got) != 201 || got[0] != "one-tpm gw-1 gw-2 1" || got[200] != "foreign-disk gw-1 gw-2 1" {
		t.Fatalf("%d claims, from %q to %q", len(got), got[0], got[len(got)-1])
	}
	for i := range 8 { // boards that are registered: there is no room for a stranger any more
		claim(registry.ForeignDisk, "bed-0", fmt.Sprint("bed-", i+1))
	}
	claim(registry.ForeignDisk, "bed-0", "STRANGER-X")
	if got = f.claimed(t); len(got) > 201 || strings.Contains(strings.Join(got, " "), "bed-0 STRANGER") || !strings.Contains(strings.Join(got, " "), "bed-0 bed-8 ") {
		t.Errorf("registered boards and strangers: %q", got)
	}
}

// TestAMendSettlesItsContention: the alert ends with what it asked for.
func TestAMendSettlesItsContention(t *testing.T) {
	f := one(t)
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-2", "two")}); err != nil {
		t.Fatal(err)
	}
	note := func(c registry.Claim, gateway, rival string) {
		t.Helper()
		if err := f.Contend(f.ctx, audit.Actor{ID: "server"}, registry.Contention{Claim: c, Gateway: gateway, Rival: rival}); err != nil {
			t.Fatal(err)
		}
	}
	note(registry.ForeignDisk, "gw-1", enroll.Fingerprint(ek("spare")))
	note(registry.ForeignDisk, "gw-1", enroll.Fingerprint(ek("copy")))
	note(registry.OneTPM, "gw-2", "gw-1")
	if _, err := f.Replace(f.ctx, operator, "", "gw-1", "again", []string{hexOf("one")}); !errors.Is(err, registry.ErrConflict) {
		t.Fatalf("its own board: %v", err)
	}
	if got := f.claimed(t); len(got) != 3 {
		t.Fatalf("its own board, given once more, accuses it: %q", got)
	}
	if _, err := f.Replace(f.ctx, operator, "", "gw-1", "broken", []string{hexOf("spare")}); err != nil {
		t.Fatal(err)
	}
	if got := f.claimed(t); len(got) != 1 || !strings.Contains(got[0], enroll.Fingerprint(ek("copy"))) {
		t.Errorf("after the replacement: %q", got)
	}
}

// TestMendsCanBeDone: no mend names a replacement that would be refused, and a gateway that has ended is claimed by nobody.
func TestMendsCanBeDone(t *testing.T) {
	for rival, words := range map[string]string{"gw-2": "into the box of gw-2", "ABCD-EFGH-IJKL-MNOP": "'wardlink gateway replace gw-1'"} {
		c := registry.Contention{Claim: registry.ForeignDisk, Gateway: "gw-1", Rival: rival}
		if mend := c.Mend(); !strings.Contains(mend, words) {
			t.Errorf("the disk in %s: %s", rival, mend)
		}
	}
	f := one(t)
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE gateways SET state = 'decommissioned' WHERE id = 'gw-1'")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.Contend(f.ctx, audit.Actor{ID: "server"}, registry.Contention{Claim: registry.ForeignDisk, Gateway: "gw-1", Rival: "ABCD-EFGH-IJKL-MNOP"}); err != nil {
		t.Fatal(err)
	}
	if got := f.claimed(t); len(got) != 0 {
		t.Errorf("a gateway that has ended: %q", got)
	}
}
