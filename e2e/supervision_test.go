package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"wardlink/agent"
	"wardlink/internal/child"
)

// hangup is what systemctl reload does; it gives what the agent says of it.
func (b *box) hangup(ok func(agent.ReloadStatus) bool) (s agent.Status) {
	b.t.Helper()
	out, err := child.Output(context.Background(), "kill", "-HUP", fmt.Sprint(b.agent.PID()))
	if err != nil {
		b.t.Fatalf("%v: %s", err, out)
	}
	b.await("the reload", func(ctx context.Context) (bool, error) {
		out, err := child.Output(ctx, program("wardlink-agent"), "status", "--json", "--config", b.config()+".first")
		if err != nil {
			return false, nil
		}
		s = agent.Status{}
		return json.Unmarshal(out, &s) == nil && ok(s.Reload), nil
	})
	return s
}

// scrape reads metrics as Prometheus does, by its own parser.
func (b *box) scrape(socket string) map[string]map[string]float64 {
	b.t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Get("http://agent/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		b.t.Fatalf("%s, %v, %v", resp.Status, resp.Header, err)
	}
	if bytes.Contains(body, []byte("CANARY7")) {
		b.t.Error("a patient's identifier is among the metrics")
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		b.t.Fatalf("%v:\n%s", err, body)
	}
	out := map[string]map[string]float64{}
	for name, f := range families {
		if !strings.HasPrefix(name, "wardlink_agent_") || f.GetHelp() == "" || f.Type == nil {
			b.t.Errorf("%s: help %q, type %v", name, f.GetHelp(), f.Type)
		}
		out[name] = map[string]float64{}
		for _, m := range f.GetMetric() {
			label := ""
			for _, l := range m.GetLabel() {
				label += l.GetValue()
			}
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			out[name][label] = v
			if _, total := strings.CutSuffix(name, "_total"); total != (m.Counter != nil) {
				b.t.Errorf("%s is of the wrong type", name)
			}
		}
	}
	return out
}

// TestSupervision: a running agent takes a changed configuration at SIGHUP, keeps what it has when the file is wrong, and shows its figures to
// Prometheus' own parser.
func TestSupervision(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	b := h.newBox("box", h.kit())
	second, metrics := freeAddr(t), filepath.Join(b.dir, "m.sock")
	b.rewrite("sources:", fmt.Sprintf("report_every: 1s\nmetrics: {socket: %s}\nsources:", metrics))
	text, err := os.ReadFile(b.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.config()+".first", text, 0o600); err != nil { // for asking the agent while its file is wrong
		t.Fatal(err)
	}
	b.deliverAs("icu-7")
	if info, err := os.Stat(metrics); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the metrics socket: %v, %v", info, err)
	}
	m := b.scrape(metrics)
	for name, want := range map[string]float64{
		"wardlink_agent_uplink_connected": 1, "wardlink_agent_clock_trusted": 1, "wardlink_agent_enrolled": 1, "wardlink_agent_messages_total": 1,
		"wardlink_agent_buffer_cap_bytes": 1 << 30, "wardlink_agent_clock_steps_total": 0,
	} {
		if got, ok := m[name][""]; !ok || got != want {
			t.Errorf("%s is %v, %t; expected %v", name, got, ok, want)
		}
	}
	if m["wardlink_agent_source_received_total"]["bed-1"] != 1 || m["wardlink_agent_acknowledged_batches_total"]["vitals"] != 1 || m["wardlink_agent_waiting_batches"]["vitals"] != 0 {
		t.Errorf("%v", m)
	}
	if left := m["wardlink_agent_certificate_expiry_seconds"][""]; left < 3600 || left > 25*3600 {
		t.Errorf("the certificate ends in %v s", left)
	}
	if own := b.scrape(filepath.Join(b.state(), "agent.sock")); len(own) != len(m) {
		t.Errorf("the agent's own socket tells %d families, the metrics socket %d", len(own), len(m))
	}
	// The metrics socket says nothing else.
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", metrics)
	}}}
	if resp, err := client.Get("http://agent/status"); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("status at the metrics socket: %v, %v", resp, err)
	}

	// A file with a mistake: it is named with its line and what was meant, and nothing changes.
	b.rewrite("sources: [", "sources: [{id: bed-2, mlpp: \""+second+"\"}, ")
	ctx := context.Background()
	if out, err := child.Output(ctx, program("wardlink-agent"), "config", "check", b.config()); err == nil || !strings.Contains(err.Error()+string(out), `did you mean mllp?`) {
		t.Errorf("config check: %v\n%s", err, out)
	}
	before := b.agent.PID()
	s := b.hangup(func(r agent.ReloadStatus) bool { return !r.At.IsZero() })
	if !strings.Contains(s.Reload.Error, `unknown field "mlpp"; did you mean mllp?`) || !strings.Contains(s.Reload.Error, "[6:") || len(s.Sources) != 1 || len(s.Reload.Changed) != 0 {
		t.Errorf("%+v, sources %v", s.Reload, s.Sources)
	}
	if out := string(b.must("wardlink-agent", "status", "--config", b.config()+".first")); !strings.Contains(out, "did you mean mllp?") {
		t.Errorf("status says nothing of the file that is wrong:\n%s", out)
	}
	b.send("M2")

	// Mended, with a change that needs a restart.
	b.rewrite("mlpp", "mllp")
	b.rewrite("report_every: 1s", "report_every: 2s\nlog: json")
	b.must("wardlink-agent", "config", "check", b.config())
	s = b.hangup(func(r agent.ReloadStatus) bool { return r.Error == "" })
	if got := strings.Join(s.Reload.Changed, ", "); got != "source bed-2 added, report_every" || strings.Join(s.Reload.Restart, ", ") != "log" || s.PID != before {
		t.Errorf("%+v, process %d, before %d", s.Reload, s.PID, before)
	}
	first := b.mllp
	b.mllp = second
	b.send("M3")
	b.mllp = first
	b.send("M4")
	b.awaitIdle()
	if n := b.scrape(metrics)["wardlink_agent_source_received_total"]; n["bed-1"] != 3 || n["bed-2"] != 1 {
		t.Errorf("received %v", n)
	}
	b.hospital.balanced(t, "icu-7")
}
