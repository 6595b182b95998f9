package uplink

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/internal/build"
	"wardlink/telemetry"
)

// refuseUserName reads the CONNECT as a server of the first release did: with a user name it is refused (CONNACK 4, nil), else the
// connection is given back as if nothing had been read.
func refuseUserName(c *tls.Conn) net.Conn {
	head := make([]byte, 2)
	if _, err := io.ReadFull(c, head); err != nil {
		c.Close()
		return nil
	}
	body := make([]byte, head[1])
	if _, err := io.ReadFull(c, body); err != nil || body[7]&0x80 != 0 {
		_, _ = c.Write([]byte{0x20, 2, 0, 4})
		c.Close()
		return nil
	}
	return &replayed{c, io.MultiReader(bytes.NewReader(head), bytes.NewReader(body), c)}
}

type replayed struct {
	net.Conn
	r io.Reader
}

func (r *replayed) Read(p []byte) (int, error) { return r.r.Read(p) }

func TestVersionsAreNegotiated(t *testing.T) {
	h := newHospital(t)
	h.speaks = telemetry.Versions{Oldest: 1, Newest: 7}
	h.start()
	a := newAgent(t, h)
	a.start()
	eventually(t, "the server's hello", func() bool { return a.Status().Protocol == telemetry.ProtocolNewest })
	if s := a.Status(); s.ServerSpeak != "1-7" || s.ServerBuild != build.Version {
		t.Errorf("%+v", s)
	}
	ev := h.journal.events(audit.SessionOpened)
	if len(ev) != 1 || ev[0].Detail["agent"] != build.Version || ev[0].Detail["protocol"] != "2" {
		t.Errorf("%+v", ev)
	}
}

// TestNoVersionInCommon: agent and server that cannot speak say so on both sides, keep the data, and go on once one is mended.
func TestNoVersionInCommon(t *testing.T) {
	h := newHospital(t)
	h.speaks = telemetry.Versions{Oldest: 8, Newest: 9}
	h.start()
	a := newAgent(t, h)
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 3, 100)...)
	a.start()
	eventually(t, "the refusal", func() bool { return a.Status().LastError != "" })
	s := a.Status()
	for _, word := range []string{h.addr, "1-2", build.Version, "install"} {
		if !strings.Contains(s.LastError, word) {
			t.Errorf("%q does not say %q", s.LastError, word)
		}
	}
	if s.Fault != "agent and server have no protocol version in common" || s.Connected || s.Connects != 0 {
		t.Errorf("%+v", s)
	}
	refused := h.journal.events(audit.Refused)
	if len(refused) == 0 || refused[0].Detail["agent"] != "wl/1-2/"+build.Version || refused[0].Detail["server"] != "8-9" {
		t.Errorf("%+v", refused)
	}
	if n := a.buf.count(acked) + a.buf.count(parked); n != 0 {
		t.Errorf("%d batches were settled", n)
	}
	h.kill()
	h.speaks = telemetry.Versions{Oldest: 2, Newest: 9}
	h.start()
	eventually(t, "everything is acknowledged", func() bool { return a.buf.count(acked) == 3 })
}

// TestServerOfTheFirstRelease: it refuses the user name, and is spoken to without one at the next attempt.
func TestServerOfTheFirstRelease(t *testing.T) {
	h := newHospital(t)
	h.first = true
	h.start()
	a := newAgent(t, h)
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 3, 100)...)
	a.start()
	eventually(t, "everything is acknowledged", func() bool { return a.buf.count(acked) == 3 })
	if s := a.Status(); s.Protocol != 1 || s.ServerBuild != "" || s.Connects != 1 {
		t.Errorf("%+v", s)
	}
}
