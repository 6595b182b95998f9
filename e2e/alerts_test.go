package e2e

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"wardlink/internal/child"
)

// TestAlertsReachTheirTarget: what is wrong with a running server arrives at a receiver, signed; it is listed, taken on and silenced by an
// operator, each with its leaf; a target that fails is seen by 'alerts test'; and an alert that waits outlives a SIGKILL.
func TestAlertsReachTheirTarget(t *testing.T) {
	const secret = "c2VjcmV0IG9mIHRoZSByZWNlaXZlciwgMzIgYnl0ZXM="
	var mu sync.Mutex
	down := true
	got := map[string]int{} // message ids by "type alert"
	pager := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if down {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		body, err := io.ReadAll(r.Body)
		key, _ := base64.StdEncoding.DecodeString(secret)
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), body)
		if err != nil || r.Header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
			t.Errorf("signature of %s", body)
		}
		var m struct {
			Type string
			Data struct{ Alert string }
		}
		if err := json.Unmarshal(body, &m); err != nil {
			t.Error(err)
		}
		got[m.Type+" "+m.Data.Alert]++
	}))
	defer pager.Close()
	h := initHospital(t)
	put := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(h.dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := put("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pager.Certificate().Raw})), 0o644)
	key := put("secret", "whsec_"+secret+"\n", 0o600)
	config := filepath.Join(h.server(), "server.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	configure := func(alerts string) {
		if err := os.WriteFile(config, append(text, alerts...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx := context.Background()
	configure("alerts: {targets: [{name: pager, webhok: x}]}\n")
	if _, err := child.Output(ctx, program("wardlink-server"), "run", "--dir", h.server()); err == nil || !strings.Contains(err.Error(), "webhok") {
		t.Fatalf("a typo in the configuration: %v", err)
	}
	configure(fmt.Sprintf("alerts:\n  limits: {disk_free_percent: 1, disk_free_gb: 1}\n  backup_stamp: %s\n  targets: [{name: pager, webhook: %q, secret_file: %s, ca_file: %s}]\n",
		filepath.Join(h.dir, "no-stamp"), pager.URL+"/hook", key, ca))
	h.run()

	var list struct {
		Alerts  []struct{ Type, Subject, State string }
		Targets []struct {
			Waiting int
			Error   string
		}
	}
	h.await("the alert and the failing target", func(context.Context) (bool, error) {
		h.ask(&list, "alerts")
		return len(list.Alerts) == 1 && list.Targets[0].Waiting == 1 && strings.Contains(list.Targets[0].Error, "503"), nil
	})
	if a := list.Alerts[0]; a.Type != "backup-old" || a.Subject != "stamp" || a.State != "open" {
		t.Errorf("%+v", a)
	}
	if out, err := child.Output(ctx, program("wardlink"), "--operator", h.operator(), "alerts", "test"); err == nil || !strings.Contains(string(out), "503") {
		t.Errorf("test of a target that fails: %s %v", out, err)
	}
	h.must("wardlink", "--operator", h.operator(), "alerts", "ack", "backup-old/stamp", "--note", "on it")
	h.must("wardlink", "--operator", h.operator(), "alerts", "silence", "--type", "disk-*", "--for", "2h", "--reason", "new disk")

	h.proc.Kill()
	mu.Lock()
	down = false
	mu.Unlock()
	h.run()
	h.await("delivery after the kill", func(context.Context) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return got["alert.raised backup-old"] > 0, nil
	})
	h.must("wardlink", "--operator", h.operator(), "alerts", "test", "--target", "pager")
	h.ask(&list, "alerts")
	if len(list.Alerts) != 1 || list.Alerts[0].State != "acknowledged" {
		t.Errorf("after the kill: %+v", list.Alerts)
	}
	h.proc.Stop()
	out := string(h.must("wardlink", "audit", "list", "--dir", h.server()))
	for _, want := range []string{"alert.raised", "alert.acknowledged", "alert.silenced", "alert.tested"} {
		if !strings.Contains(out, want) {
			t.Errorf("no leaf %s:\n%s", want, out)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if got["alert.test test"] != 1 || strings.Count(out, "alert.raised") != 1 {
		t.Errorf("%v\n%s", got, out)
	}
}
