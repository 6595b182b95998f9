package ingest

import (
	"bytes"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"wardlink/audit"
	"wardlink/telemetry"
)

// helloPacket is a CONNECT with a user name.
func helloPacket(id, user string) []byte {
	return raw(0x10, append(append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 0x82, 0, 60}, str(id)...), str(user)...))
}

func TestHelloIsAnswered(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1", "gw-2", "gw-3")
	for i, tc := range []struct {
		gateway, user string
		version       uint16
	}{{"gw-1", "wl/1-9/9.1.0+new", 2}, {"gw-2", "wl/1-1/0.0.9", 1}} {
		c := b.dial(b.ca.gateway(tc.gateway))
		c.send(helloPacket(tc.gateway, tc.user))
		c.expectConnack(connackAccepted)
		c.send(subscribePacket(9, telemetry.DownFilter(tc.gateway), 0))
		c.expect(kindSuback)
		topic := telemetry.DownTopic(tc.gateway, telemetry.DocHello)
		body, ok := bytes.CutPrefix(c.expect(kindPublish), append([]byte{0, byte(len(topic))}, topic...))
		w, err := telemetry.DecodeWelcome(body)
		if !ok || err != nil || w.Version != tc.version || w.Server != telemetry.Spoken() || w.Build == "" {
			t.Errorf("%s: %+v, %v", tc.user, w, err)
		}
		c.expect(kindPublish) // the configuration
		ev := b.journal.events(audit.SessionOpened)[i]
		if ev.Detail["protocol"] != string('0'+byte(tc.version)) || ev.Detail["agent"] != tc.user[len("wl/1-9/"):] {
			t.Errorf("%+v", ev)
		}
	}
	// Who says nothing is told nothing.
	c := b.connect("gw-3")
	c.send(subscribePacket(9, telemetry.DownFilter("gw-3"), 0))
	c.expect(kindSuback)
	if body := c.expect(kindPublish); bytes.Contains(body, []byte("/hello")) {
		t.Errorf("pushed %q", body)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(b.srv)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "wardlink_ingest_agents" {
			for _, m := range f.GetMetric() {
				key := ""
				for _, l := range m.GetLabel() {
					key += l.GetValue() + " "
				}
				got[key] = m.GetGauge().GetValue()
			}
		}
	}
	if len(got) != 3 || got["9.1.0+new 2 "] != 1 || got["0.0.9 1 "] != 1 || got[" 1 "] != 1 {
		t.Errorf("%v", got)
	}
}
