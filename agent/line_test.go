package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"wardlink/agent/source"
	"wardlink/telemetry"
	"wardlink/telemetry/line"
	"wardlink/telemetry/seal"
)

func lineDelivery(t *testing.T, raw string) source.Delivery {
	t.Helper()
	m, id, err := line.Understand([]byte(raw), line.Options{Source: "pump"})
	if err != nil {
		t.Fatal(err)
	}
	return source.Delivery{Source: "pump", Raw: []byte(raw), Message: m, ID: id.Text}
}

// The same bytes are one message also after a restart; other bytes under an id are told to the device, and nothing of them is kept.
func TestIDNamesOneMessage(t *testing.T) {
	key, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() + "/buffer"
	send := func(s *station, raw string) error {
		return s.in.accept(context.Background(), lineDelivery(t, raw), true)
	}
	s := newStation(t, dir, key)
	a := `{"id":"a","observations":[{"code":"MDC_ECG_HEART_RATE","value":72,"unit":"/min"}]}`
	other := strings.Replace(a, "72", "73", 1)
	if err := send(s, a); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := send(s, a); err != nil {
			t.Errorf("resend: %v", err)
		}
		if err := send(s, other); !errors.Is(err, source.ErrReused) {
			t.Errorf("another message under the id: %v", err)
		}
		if c := s.in.counters(); c.Resent != 1 {
			t.Errorf("%+v", c)
		}
		s.stop()
		s = newStation(t, dir, key) // which knows only what is on disk
	}
	if err := send(s, strings.Replace(other, `"a"`, `"b"`, 1)); err != nil {
		t.Errorf("with an id of its own: %v", err)
	}
	if c := s.in.counters(); c.Messages != 1 {
		t.Errorf("%+v", c)
	}
}

func TestLanesOfLines(t *testing.T) {
	for raw, want := range map[string]telemetry.Lane{
		`{"id":1,"observations":[]}`:                                            telemetry.LaneVitals,
		`{"id":1,"alarms":[]}`:                                                  telemetry.LaneAlarm,
		`{"id":1,"waveforms":[{"code":1,"period":4,"samples":[1]}]}`:            telemetry.LaneWaveform,
		`{"id":1,"waveforms":[{"code":1,"samples":[1]}]}`:                       telemetry.LaneVitals,
		`{"id":1,"waveforms":[{"code":1,"period":4,"samples":[1]}],"alarms":7}`: telemetry.LaneAlarm,
	} {
		if got := laneOf(lineDelivery(t, raw).Message); got != want {
			t.Errorf("%s: %v, want %v", raw, got, want)
		}
	}
}

func TestLineSourceConfig(t *testing.T) {
	base := "sources: [{id: pump, %s}]"
	c, err := ParseConfig(fmt.Appendf(nil, base, `socket: /run/x.sock, mode: "0666", group: root, users: [root, "7"], groups: [daemon]`))
	if err != nil || !c.Sources[0].isLine() || c.Sources[0].Socket != "/run/x.sock" || c.Sources[0].Mode != "0666" || len(c.Sources[0].Users) != 2 {
		t.Fatalf("%+v %v", c.Sources, err)
	}
	for keys, want := range map[string]string{
		`socket: x.sock`: "absolute path", `socket: /run/x, mllp: "127.0.0.1:1"`: "either", `socket: /run/x, mode: "8"`: "mode", `socket: /run/x, mode: "0060"`: "mode",
		`socket: /run/x, unique_ids: false`: "either", `socket: /run/x, time_zone: Mars/Olympus`: "time_zone", `mllp: "127.0.0.1:1", users: [root]`: "socket",
		`socket: /run/x}, {id: other, socket: /run/x`: "already", `sock: /run/x`: "sock", `mode: "0660"`: "socket",
		`socket: /run/x, bindings: [{address: 10.1.2.3, bed: B}]`: "bindings[0]: expected a device", `socket: /run/x, bindings: [{device: p, bed: B, id: p}]`: "bindings[0]: expected a device",
		`socket: /run/x, bindings: [{device: p}]`: "bed:",
	} {
		if _, err := ParseConfig(fmt.Appendf(nil, base, keys)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", keys, err)
		}
	}
	if n, err := number("/etc/passwd", "root"); n != 0 || err != nil {
		t.Errorf("root is %d %v", n, err)
	}
	if n, err := number("/etc/group", "4711"); n != 4711 || err != nil {
		t.Errorf("4711 is %d %v", n, err)
	}
	if _, err := number("/etc/group", "no-such-group"); err == nil || !strings.Contains(err.Error(), "no-such-group") {
		t.Error(err)
	}
}
