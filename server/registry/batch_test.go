package registry_test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/server/registry"
)

func waiting(name, serial, peer string, chain bool) registry.Waiting {
	return registry.Waiting{EK: ek(name), EKPublic: []byte(name), Serial: serial, Peer: peer, Chain: chain}
}

func row(id, column, value string) registry.BatchRow {
	r := registry.BatchRow{Gateway: registry.Gateway{ID: id, Site: "North", Ward: "ICU 2"}}
	for r2 := range strings.SplitSeq(column, "+") {
		switch r2 {
		case "serial":
			r.Serial = value
		case "ek_sha256":
			r.EK = value
		case "fingerprint":
			r.Fingerprint = value
		}
	}
	return r
}

func hexOf(name string) string { e := ek(name); return hex.EncodeToString(e[:]) }

// TestApproveBatch: each way in which a row names its TPM, each in which it must not, and the same batch again.
func TestApproveBatch(t *testing.T) {
	f := setup(t, 0)
	bench := netip.MustParsePrefix("10.7.0.0/16")
	for _, w := range []registry.Waiting{
		waiting("a", "S-A", "10.7.0.1:9", true), waiting("b", "S-B", "10.7.0.2:9", true), waiting("c", "S-C", "10.7.0.3:9", true),
		waiting("twin 1", "S-T", "10.7.0.4:9", true), waiting("twin 2", "S-T", "10.7.0.5:9", true),
		waiting("elsewhere", "S-E", "10.8.0.1:9", true), waiting("soft", "S-S", "10.7.0.6:9", false),
	} {
		if err := f.Wait(f.ctx, w); err != nil {
			t.Fatal(err)
		}
	}
	both := row("gw-c2", "fingerprint", enroll.Fingerprint(ek("soft")))
	both.Serial = "S-other"
	mixed := row("gw-m", "fingerprint", enroll.Fingerprint(ek("a")))
	mixed.EK = hexOf("b")
	cases := []struct {
		row     registry.BatchRow
		outcome registry.BatchOutcome
		by      string
		reason  string
	}{
		{row("gw-a", "ek_sha256", hexOf("a")), registry.BatchApproved, "ek_sha256", ""},
		{row("gw-b", "fingerprint", strings.ToLower(enroll.Fingerprint(ek("b")))), registry.BatchApproved, "fingerprint", ""},
		{both, registry.BatchRefused, "fingerprint", "which box is it"},
		{mixed, registry.BatchRefused, "ek_sha256", "different TPMs"},
		{row("gw-c", "serial", "S-C"), registry.BatchApproved, "serial", ""},
		{row("gw-t", "serial", "S-T"), registry.BatchRefused, "serial", "2 waiting TPMs claim"},
		{row("gw-e", "serial", "S-E"), registry.BatchRefused, "serial", "outside --trust-serial"},
		{row("gw-s", "serial", "S-S"), registry.BatchRefused, "serial", "does not chain"},
		{row("gw-n", "serial", "S-N"), registry.BatchAbsent, "serial", "no TPM waits"},
		{row("gw-n2", "fingerprint", "AAAA-AAAA-AAAA-AAAA"), registry.BatchAbsent, "fingerprint", "no TPM waits"},
		{row("gw-a2", "ek_sha256", hexOf("a")), registry.BatchRefused, "ek_sha256", "gateway gw-a already"},
		{row("gw-c3", "serial", "S-C"), registry.BatchRefused, "serial", "gateway gw-c was approved by"},
		{row("Not A Name", "ek_sha256", hexOf("twin 1")), registry.BatchRefused, "ek_sha256", "gateway id"},
		{row("gw-x", "fingerprint", "nonsense"), registry.BatchRefused, "fingerprint", "expected one such as"},
		{row("gw-x", "ek_sha256", "abcd"), registry.BatchRefused, "ek_sha256", "64 hex digits"},
		{row("gw-x", "", ""), registry.BatchRefused, "", "none of"},
	}
	b := registry.Batch{TrustSerial: []netip.Prefix{bench}}
	for _, c := range cases {
		b.Rows = append(b.Rows, c.row)
	}
	for _, again := range []bool{false, true} {
		res, err := f.ApproveBatch(f.ctx, operator, "10.0.0.1:1", b)
		if err != nil || len(res) != len(cases) {
			t.Fatalf("%d results, %v", len(res), err)
		}
		for i, c := range cases {
			want := c.outcome
			if again && want == registry.BatchApproved {
				want = registry.BatchUnchanged
			}
			if res[i].Outcome != want || !strings.Contains(res[i].Reason, c.reason) || c.reason == "" && res[i].Reason != "" {
				t.Errorf("again %t, %s by %q: %s, %q; expected %s with %q", again, c.row.ID, c.by, res[i].Outcome, res[i].Reason, want, c.reason)
			}
			if res[i].By != c.by {
				t.Errorf("%s: matched by %q; expected %q", c.row.ID, res[i].By, c.by)
			}
		}
	}
	for _, name := range []string{"twin 1", "twin 2", "elsewhere", "soft"} {
		if _, err := f.ByEK(f.ctx, ek(name)); err == nil {
			t.Errorf("%s is admitted", name)
		}
	}
	how := map[string]string{}
	for _, ev := range f.journal.Events(t) {
		if ev.Type == audit.GatewayApproved && ev.Outcome == audit.Success {
			how[ev.Target] += ev.Detail["matched_by"]
		}
	}
	if want := map[string]string{"gw-a": "ek_sha256", "gw-b": "fingerprint", "gw-c": "serial"}; fmt.Sprint(how) != fmt.Sprint(want) {
		t.Errorf("events tell %v; expected %v", how, want)
	}
}

// TestSerialNeedsTrust: without a network that is named, knowing a serial number is worth nothing; and a TPM that comes later with the
// serial number of a gateway is shown for what it is.
func TestSerialNeedsTrust(t *testing.T) {
	f := setup(t, 0)
	if err := f.Wait(f.ctx, waiting("attacker", "S-1", "10.7.0.9:1", true)); err != nil {
		t.Fatal(err)
	}
	one := []registry.BatchRow{row("gw-1", "serial", "S-1")}
	res, err := f.ApproveBatch(f.ctx, operator, "", registry.Batch{Rows: one})
	if err != nil || res[0].Outcome != registry.BatchRefused || !strings.Contains(res[0].Reason, enroll.Fingerprint(ek("attacker"))) {
		t.Fatalf("%+v, %v; expected a refusal that names the TPM's fingerprint", res, err)
	}
	if denied := f.journal.Events(t); denied[len(denied)-1].Outcome != audit.Denied || denied[len(denied)-1].Target != "gw-1" {
		t.Errorf("the refusal is no event: %+v", denied[len(denied)-1])
	}
	everywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	if res, err = f.ApproveBatch(f.ctx, operator, "", registry.Batch{Rows: one, TrustSerial: everywhere}); err != nil || res[0].Outcome != registry.BatchApproved {
		t.Fatalf("%+v, %v", res, err)
	}
	if err := f.Wait(f.ctx, waiting("box", "S-1", "10.7.0.1:1", true)); err != nil {
		t.Fatal(err)
	}
	list, err := f.Waiting(f.ctx)
	if err != nil || len(list) != 1 || list[0].SerialOf != "gw-1" || list[0].Serial != "S-1" {
		t.Errorf("%+v, %v; expected the box beside the gateway that has its serial number", list, err)
	}
}

// TestAbsentRows: a row whose gateway does not wait yet is an event only once nobody will ask again.
func TestAbsentRows(t *testing.T) {
	f := setup(t, 0)
	rows := []registry.BatchRow{row("gw-1", "ek_sha256", hexOf("a"))}
	for last, want := range map[bool]int{false: 0, true: 1} {
		before := len(f.journal.Events(t))
		if res, err := f.ApproveBatch(f.ctx, operator, "", registry.Batch{Rows: rows, Last: last}); err != nil || res[0].Outcome != registry.BatchAbsent {
			t.Errorf("%+v, %v", res, err)
		}
		if n := len(f.journal.Events(t)) - before; n != want {
			t.Errorf("last %t: %d events; expected %d", last, n, want)
		}
	}
}

// TestTwoHundredAtOnce: a shelf of gateways waits and is admitted, all of them, in transactions that let others write in between.
func TestTwoHundredAtOnce(t *testing.T) {
	f := setup(t, 0)
	var b registry.Batch
	for i := range 200 {
		name := fmt.Sprint("box ", i)
		if err := f.Wait(f.ctx, waiting(name, "", "10.7.0.1:9", true)); err != nil {
			t.Fatal(err)
		}
		b.Rows = append(b.Rows, row(fmt.Sprintf("gw-%03d", i), "fingerprint", enroll.Fingerprint(ek(name))))
	}
	res, err := f.ApproveBatch(f.ctx, operator, "", b)
	if err != nil || len(res) != 200 {
		t.Fatalf("%d results, %v", len(res), err)
	}
	for i, r := range res {
		if g, err := f.ByEK(f.ctx, ek(fmt.Sprint("box ", i))); r.Outcome != registry.BatchApproved || err != nil || g.ID != r.ID || r.EK != ek(fmt.Sprint("box ", i)) {
			t.Fatalf("%+v is gateway %q, %v", r, g.ID, err)
		}
	}
	if list, err := f.Waiting(f.ctx); err != nil || len(list) != 0 {
		t.Errorf("%d still wait, %v", len(list), err)
	}
}
