package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wardlink/internal/child"
	"wardlink/server/api/client"
)

// reportsOften has the box's agent report of itself every second from its next start on, so that balanced need not wait for a minute.
func (b *box) reportsOften() {
	b.t.Helper()
	b.configure("report_every: 1s\n")
}

// accounted asks for a gateway's account with the real tool, and holds the tool to its word: it ends with 1 exactly when a row does not balance.
func (h *hospital) accounted(t testing.TB, gateway string) client.Account {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("wardlink"), "--operator", h.operator(), "--json", "account", gateway, "--check")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var accounts []client.Account
	if jerr := json.Unmarshal(out.Bytes(), &accounts); jerr != nil || len(accounts) != 1 {
		t.Fatalf("account of %s: %v %v\n%s%s", gateway, err, jerr, out.Bytes(), errs.Bytes())
	}
	whole := true
	for _, b := range accounts[0].Epochs {
		whole = whole && b.Balances
	}
	if (err == nil) != whole {
		t.Fatalf("account of %s ends with %v; every row balances: %t\n%s%s", gateway, err, whole, out.Bytes(), errs.Bytes())
	}
	return accounts[0]
}

// balanced waits for a report that the hospital receives from now on, and then asserts that every row of the gateway's account balances. A
// number that nobody accounts for is an error whenever it is seen. The gateway must be able to deliver; see reportsOften.
func (h *hospital) balanced(t testing.TB, gateway string) client.Account {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var a client.Account
	err := child.Until(ctx, "a fresh report of "+gateway, []*child.Process{h.proc}, func(context.Context) (bool, error) {
		a = h.accounted(t, gateway)
		told := true
		for _, b := range a.Epochs {
			if b.Difference != 0 || b.Unsettled != 0 {
				t.Fatalf("the account of %s does not balance: %+v", gateway, b)
			}
			told = told && b.Told
		}
		return told && a.Reported != nil && a.Reported.After(begun), nil
	})
	if err != nil {
		t.Fatalf("%v; the account of %s is %+v", err, gateway, a)
	}
	return a
}

// lane is the sum over all epochs of one lane; none came when ok is false.
func lane(a client.Account, name string) (sum client.Balance, ok bool) {
	for _, b := range a.Lanes {
		if b.Lane == name {
			return b, true
		}
	}
	return client.Balance{}, false
}

// TestAccountBalances across a power cut of the agent and an orderly stop.
func TestAccountBalances(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	b := h.newBox("box", h.kit())
	b.reportsOften()
	b.deliverAs("icu-7")
	a := h.balanced(t, "icu-7")
	if v, _ := lane(a, "vitals"); v.Assigned != 1 || v.Stored != 1 {
		t.Fatalf("one message: %+v", a)
	}
	b.agent.Kill()
	b.start()
	b.send("M2")
	h.balanced(t, "icu-7")
	b.agent.Stop()
	b.start()
	b.send("M3")
	b.awaitIdle()
	a = h.balanced(t, "icu-7")
	if v, _ := lane(a, "vitals"); v.Assigned != 3 || v.Stored != 3 || v.Buffered != 0 || len(v.AtMost) != 0 {
		t.Fatalf("three messages: %+v", a)
	}
	epochs := map[string]bool{}
	for _, e := range a.Epochs {
		epochs[e.Epoch] = true
	}
	if len(epochs) != 3 {
		t.Errorf("%d epochs for three starts: %+v", len(epochs), a)
	}
	page := string(h.must("wardlink", "--operator", h.operator(), "account", "--check"))
	if !strings.Contains(page, "icu-7    vitals         3          3       3        0     0         0       0     0     0           0  ") || !strings.HasSuffix(page, "\nevery row balances\n") {
		t.Errorf("the page:\n%s", page)
	}
}
