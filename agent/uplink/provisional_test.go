package uplink

import (
	"crypto/x509"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
)

// newUntrusting is an agent whose clock is not trusted until known says the time.
func newUntrusting(t *testing.T, h *hospital) (a *agent, known *atomic.Pointer[time.Time]) {
	a, known = newAgent(t, h), new(atomic.Pointer[time.Time])
	a.cfg.Moment = func() spiffe.Moment {
		if now := known.Load(); now != nil {
			return spiffe.Moment{Time: *now}
		}
		return spiffe.Moment{Time: h.ca.cert.NotBefore, Floor: true}
	}
	return a, known
}

// TestNothingIsDeletedBeforeTheTimeIsKnown: a session whose server nobody could judge by date carries everything and deletes nothing; once
// the time is known and the server's dates hold it counts in full, also what it carried before.
func TestNothingIsDeletedBeforeTheTimeIsKnown(t *testing.T) {
	h := newHospital(t)
	h.start()
	a, known := newUntrusting(t, h)
	p := a.ward.period()
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 200, 200)...)
	a.start()
	eventually(t, "everything is journaled", func() bool { return h.journal.total() == 200 })
	eventually(t, "every acknowledgement has come", func() bool { return a.Status().InFlight == 0 })
	if s := a.Status(); a.buf.count(acked) != 0 || a.buf.count(taken) != 200 || !s.Provisional || s.Acknowledged != 0 || !s.Connected {
		t.Fatalf("%d deleted, %d kept; %+v", a.buf.count(acked), a.buf.count(taken), s)
	}
	now := time.Now()
	known.Store(&now)
	eventually(t, "the session counts in full", func() bool { return a.buf.count(acked) == 200 })
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 200)...)
	eventually(t, "what comes later counts at once", func() bool { return a.buf.count(acked) == 210 })
	if s := a.Status(); s.Provisional || s.Connects != 1 || s.Acknowledged != 210 {
		t.Errorf("%+v; expected one session all along", s)
	}
}

// TestAServerThatProvesExpiredIsLeft: it was let in at 1970; by the time that is known then its certificate has ended. What it acknowledged
// is not deleted, and goes to a server that holds.
func TestAServerThatProvesExpiredIsLeft(t *testing.T) {
	h := newHospital(t)
	ended := h.ca.issue("spiffe://"+domain+"/service/ingest", x509.ExtKeyUsageServerAuth, time.Now().Add(-time.Minute))
	good := h.tls.Certificates[0]
	h.tls.Certificates[0] = ended
	h.start()
	a, known := newUntrusting(t, h)
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 50, 200)...)
	a.start()
	eventually(t, "everything is journaled", func() bool { return h.journal.total() == 50 })
	now := time.Now()
	known.Store(&now)
	eventually(t, "the session ends", func() bool { return strings.Contains(a.Status().LastError, "not valid at this machine's time") })
	eventually(t, "everything is given back", func() bool { return a.buf.count(waiting) == 50 })
	if n := a.buf.count(acked); n != 0 {
		t.Errorf("%d batches were deleted on the word of a server whose certificate has ended", n)
	}
	h.kill()
	h.tls.Certificates[0] = good
	h.start()
	eventually(t, "everything is acknowledged", func() bool { return a.buf.count(acked) == 50 })
}

// TestAProvisionalSessionThatEndsKeepsEverything: cut before the time was known, its batches are sent again.
func TestAProvisionalSessionThatEndsKeepsEverything(t *testing.T) {
	h := newHospital(t)
	h.start()
	a, known := newUntrusting(t, h)
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 50, 200)...)
	a.start()
	eventually(t, "everything is journaled", func() bool { return h.journal.total() == 50 })
	eventually(t, "every acknowledgement has come", func() bool { return a.Status().InFlight == 0 })
	h.kill()
	eventually(t, "everything is given back", func() bool { return a.buf.count(waiting) == 50 })
	now := time.Now()
	known.Store(&now)
	h.start()
	eventually(t, "everything is acknowledged", func() bool { return a.buf.count(acked) == 50 })
}

// TestNothingIsParkedBeforeTheTimeIsKnown: who holds a server's key of last year cannot have batches set aside for good either. What it
// refuses waits, holds up nothing else, and is for the server that holds to judge.
func TestNothingIsParkedBeforeTheTimeIsKnown(t *testing.T) {
	h := newHospital(t)
	ended := h.ca.issue("spiffe://"+domain+"/service/ingest", x509.ExtKeyUsageServerAuth, time.Now().Add(-time.Minute))
	good := h.tls.Certificates[0]
	h.tls.Certificates[0], h.lanes = ended, 1<<telemetry.LaneVitals
	h.start()
	a, known := newUntrusting(t, h)
	a.addWithForbidden()
	a.start()
	eventually(t, "the others are journaled", func() bool { return h.journal.total() == 10 && len(h.journal.events(audit.Refused)) >= 2 })
	now := time.Now()
	known.Store(&now)
	eventually(t, "the session ends", func() bool { return strings.Contains(a.Status().LastError, "not valid at this machine's time") })
	h.kill()
	h.tls.Certificates[0], h.lanes = good, 0x0f
	h.start()
	eventually(t, "everything is acknowledged", func() bool { return a.buf.count(acked) == 12 })
	if s := a.Status(); s.Parked != 0 {
		t.Errorf("%d batches were parked on the word of a server whose certificate has ended", s.Parked)
	}
}

// TestARefusalCountsOnceTheTimeIsKnown: a server that holds refuses again, and that counts.
func TestARefusalCountsOnceTheTimeIsKnown(t *testing.T) {
	h := newHospital(t)
	h.lanes = 1 << telemetry.LaneVitals
	h.start()
	a, known := newUntrusting(t, h)
	a.addWithForbidden()
	a.start()
	eventually(t, "the others are journaled", func() bool { return h.journal.total() == 10 && len(h.journal.events(audit.Refused)) >= 2 })
	if n := a.buf.count(parked); n != 0 {
		t.Errorf("%d batches are parked before the time is known", n)
	}
	now := time.Now()
	known.Store(&now)
	eventually(t, "the rest is acknowledged", func() bool { return a.buf.count(acked) == 10 && a.buf.count(parked) == 2 })
}

// addWithForbidden adds ten vitals, and two waveforms before and among them.
func (a *agent) addWithForbidden() {
	p := a.ward.period()
	forbidden := a.ward.batches(p, telemetry.LaneWaveform, 2, 50)
	a.buf.add(forbidden[0])
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 5, 50)...)
	a.buf.add(forbidden[1])
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 5, 50)...)
}

// TestAForeignServerIsRefusedAt1970: dates are all that is forgiven.
func TestAForeignServerIsRefusedAt1970(t *testing.T) {
	h := newHospital(t)
	h.tls.Certificates[0] = newAuthority(t, "another root").service("ingest")
	h.start()
	a, _ := newUntrusting(t, h)
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 1, 200)...)
	a.start()
	eventually(t, "the refusal", func() bool { return strings.Contains(a.Status().LastError, "does not trust") })
	h.kill()
	h.tls.Certificates[0] = h.ca.service("api")
	h.start()
	eventually(t, "the refusal of another service", func() bool { return strings.Contains(a.Status().LastError, "expected spiffe") })
	if n := h.journal.total(); n != 0 {
		t.Errorf("%d batches went to a server that is not ours", n)
	}
}
