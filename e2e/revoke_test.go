package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"wardlink/internal/child"
)

// TestRevokedGateway: an operator's command cuts a live session; the gateway gets no certificate any more, says why, and keeps what
// its monitors send.
func TestRevokedGateway(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	b := h.newBox("box", h.kit())
	b.deliverAs("icu-7")
	ctx := t.Context()
	if _, err := child.Output(ctx, program("wardlink"), "--operator", h.operator(), "gateway", "revoke", "icu-7"); err == nil || !strings.Contains(err.Error(), "--reason") {
		t.Errorf("without a reason: %v", err)
	}
	if _, err := child.Output(ctx, program("wardlink"), "--operator", h.operator(), "gateway", "revoke", "icu-9", "--reason", "x"); err == nil || !strings.Contains(err.Error(), "icu-9") {
		t.Errorf("an unknown gateway: %v", err)
	}
	begun := time.Now()
	said := string(h.must("wardlink", "--operator", h.operator(), "gateway", "revoke", "icu-7", "--reason", "stolen from the ward"))
	if !strings.Contains(said, "icu-7 is revoked") || !strings.Contains(said, "stolen from the ward") {
		t.Errorf("the command says %q", said)
	}
	h.await("the gateway's own words", func(ctx context.Context) (bool, error) {
		s, err := b.status(ctx)
		return err == nil && !s.Uplink.Connected && s.Identity == "revoked by the hospital: stolen from the ward", nil
	})
	if ack := b.send("M2"); !strings.Contains(ack, "MSA|CA|M2") {
		t.Errorf("acknowledgement %q; expected a revoked gateway to go on buffering", ack)
	}
	if s, err := b.status(ctx); err != nil || s.waiting() == 0 || s.Gateway != "icu-7" {
		t.Errorf("%+v, %v; expected the message in the buffer", s, err)
	}
	var list struct {
		Gateways []struct {
			State   string `json:"state"`
			Revoked struct {
				By      string   `json:"by"`
				Reason  string   `json:"reason"`
				Serials []string `json:"serials"`
			} `json:"revoked"`
		} `json:"gateways"`
	}
	h.ask(&list, "gateway", "list")
	g := list.Gateways[0]
	if g.State != "revoked" || g.Revoked.By != "spiffe://ward.example/operator/operator" || g.Revoked.Reason != "stolen from the ward" || len(g.Revoked.Serials) != 1 {
		t.Errorf("list: %+v", g)
	}
	// Everything is in the log, with actor and reason: the act, the cut, the refused connection, the refused renewal.
	want := map[string]string{
		"gateway.revoked": "spiffe://ward.example/operator/operator", "session.closed": "spiffe://ward.example/gateway/icu-7",
		"refused": "spiffe://ward.example/gateway/icu-7",
	}
	h.await("the log", func(ctx context.Context) (bool, error) {
		for kind, actor := range want {
			items := h.audit("--type", kind)
			found := false
			for _, it := range items {
				found = found || it.Actor == actor && (kind == "gateway.revoked" || strings.Contains(it.Reason, "revoked"))
			}
			if !found {
				return false, nil
			}
		}
		connects, renewals := 0, 0
		for _, it := range h.audit("--type", "refused") {
			if it.Target == "icu-7" {
				connects++
			} else if strings.Contains(it.Reason, "revoked") {
				renewals++
			}
		}
		return connects > 0 && renewals > 0, nil
	})
	h.cutInTime(h.cutAfter("icu-7", begun))
}

// cutInTime wants a session to end within two seconds of the start of an operator's command. A machine that was busy then gets two more chances, with a
// gateway each; the programs stay the same.
func (h *hospital) cutInTime(took time.Duration) {
	h.t.Helper()
	for _, id := range []string{"icu-8", "icu-9"} {
		if h.t.Logf("cut %s after the start of the command", took); took <= cutWithin {
			return
		}
		h.newBox(id, h.kit()).deliverAs(id)
		begun := time.Now()
		h.must("wardlink", "--operator", h.operator(), "gateway", "revoke", id, "--reason", "stolen")
		took = h.cutAfter(id, begun)
	}
	if took > cutWithin {
		h.t.Errorf("revoked gateways' sessions lived on three times, the last one for %s; expected at most %s", took, cutWithin)
	}
}

// cutAfter is when a gateway's session ended, by the log: both ends are by the clock of this machine.
func (h *hospital) cutAfter(id string, begun time.Time) (took time.Duration) {
	h.t.Helper()
	h.await("the end of the session in the log", func(context.Context) (bool, error) {
		for _, it := range h.audit("--type", "session.closed") {
			if it.Actor == "spiffe://ward.example/gateway/"+id && strings.Contains(it.Reason, "revoked") {
				took = it.Time.Sub(begun)
				return true, nil
			}
		}
		return false, nil
	})
	return took
}

type auditItem struct {
	Leaf    uint64    `json:"leaf"`
	Time    time.Time `json:"time"`
	Type    string    `json:"type"`
	Actor   string    `json:"actor"`
	Target  string    `json:"target"`
	Outcome string    `json:"outcome"`
	Reason  string    `json:"reason"`
}

// audit lists the log as a security officer would.
func (h *hospital) audit(args ...string) (items []auditItem) {
	h.t.Helper()
	out := h.must("wardlink", append([]string{"audit", "list", "--json", "--dir", h.server()}, args...)...)
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var it auditItem
		if err := dec.Decode(&it); err != nil {
			h.t.Fatal(err)
		}
		items = append(items, it)
	}
	return items
}

func (s boxStatus) waiting() (n int) {
	for _, l := range s.Buffer.Lanes {
		n += l.Waiting
	}
	return n
}
