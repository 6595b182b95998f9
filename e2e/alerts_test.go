package e2e

import (
	"bytes"
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

// pager is a receiver of alerts that checks each message's signature.
type pager struct {
	*httptest.Server
	config string // of server.yaml, without limits

	mu   sync.Mutex
	down bool
	got  map[string]int // messages by "type alert"
}

const pagerSecret = "c2VjcmV0IG9mIHRoZSByZWNlaXZlciwgMzIgYnl0ZXM="

func newPager(t *testing.T, dir string) *pager {
	t.Helper()
	p := &pager{got: map[string]int{}}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.down {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		body, err := io.ReadAll(r.Body)
		key, _ := base64.StdEncoding.DecodeString(pagerSecret)
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
		p.got[m.Type+" "+m.Data.Alert]++
	}))
	t.Cleanup(p.Close)
	put := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := put("pager.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})))
	key := put("pager.secret", "whsec_"+pagerSecret+"\n")
	p.config = fmt.Sprintf("alerts:\n  targets: [{name: pager, webhook: %q, secret_file: %s, ca_file: %s}]\n", p.URL+"/hook", key, ca)
	return p
}

func (p *pager) count(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got[what]
}

func (p *pager) set(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

// configure appends to server.yaml as init wrote it.
func (h *hospital) configure(more string) {
	h.t.Helper()
	path := filepath.Join(h.server(), "server.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	text, _, _ = bytes.Cut(text, []byte("\nalerts:"))
	if err := os.WriteFile(path, append(append(text, '\n'), more...), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// TestAlertsReachTheirTarget: what is wrong with a running server arrives at a receiver, signed; it is listed, taken on and silenced by an
// operator, each with its leaf; a target that fails is seen by 'alerts test'; and an alert that waits outlives a SIGKILL.
func TestAlertsReachTheirTarget(t *testing.T) {
	t.Parallel()
	h := initHospital(t)
	p := newPager(t, h.dir)
	p.set(true)
	ctx := context.Background()
	h.configure("alerts: {targets: [{name: pager, webhok: x}]}\n")
	if _, err := child.Output(ctx, program("wardlink-server"), "run", "--dir", h.server()); err == nil || !strings.Contains(err.Error(), "webhok") {
		t.Fatalf("a typo in the configuration: %v", err)
	}
	h.configure(p.config + "  limits: {disk_free_percent: 1, disk_free_gb: 1}\n  backup_stamp: " + filepath.Join(h.dir, "no-stamp") + "\n")
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
	p.set(false)
	h.run()
	h.await("delivery after the kill", func(context.Context) (bool, error) { return p.count("alert.raised backup-old") > 0, nil })
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
	if p.count("alert.test test") != 1 || strings.Count(out, "alert.raised") != 1 {
		t.Errorf("%v\n%s", p.got, out)
	}
}

// TestAlertsFromAFullDisk: the journal cannot be written, and the pager rings all the same; the events follow when there is room again.
func TestAlertsFromAFullDisk(t *testing.T) {
	t.Parallel()
	if !inOwnMounts(t) {
		return
	}
	h := initHospital(t)
	p := newPager(t, h.dir)
	h.configure(p.config)
	d := mount(t, filepath.Join(h.server(), "journal"), "160m")
	h.run() // makes what a first run makes
	h.proc.Stop()
	d.fill()
	h.run()
	for _, alert := range []string{"journal-fails", "disk-low"} {
		// Once or more: the disk under everything else may be low as well, and delivery is at least once.
		h.await("the pager rings for "+alert, func(context.Context) (bool, error) { return p.count("alert.raised "+alert) > 0, nil })
	}
	// An operator can look although nothing can be journaled, and take it on, and is told that the event is still to come.
	var list struct {
		Alerts []struct{ Type, State string }
	}
	h.ask(&list, "alerts")
	if len(list.Alerts) < 2 {
		t.Errorf("%+v", list)
	}
	if _, err := child.Output(context.Background(), program("wardlink"), "--operator", h.operator(), "alerts", "ack", "journal-fails/server"); err == nil ||
		!strings.Contains(err.Error(), "it holds, but its event is not in the journal yet") {
		t.Errorf("taking it on: %v", err)
	}
	d.free()
	h.await("the events", func(ctx context.Context) (bool, error) {
		out, err := child.Output(ctx, program("wardlink"), "audit", "list", "--dir", h.server())
		text := string(out)
		return err == nil && strings.Contains(text, "journal-fails/server") && strings.Contains(text, "disk-low/journal") && strings.Contains(text, "alert.acknowledged"), nil
	})
}
