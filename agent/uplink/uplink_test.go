package uplink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

func TestDrainsTheBuffer(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 300, 200)...)
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneAlarm, 20, 200)...)
	a.start()
	eventually(t, "all batches are acknowledged", func() bool { return a.buf.count(acked) == 320 })
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneSelf, 1, 10)...)
	eventually(t, "the late batch is acknowledged", func() bool { return a.buf.count(acked) == 321 })
	s := a.Status()
	if !s.Connected || s.Server != h.addr || s.Published != 321 || s.Acknowledged != 321 || s.LastError != "" || s.Connects != 1 {
		t.Errorf("status %+v", s)
	}
	if a.buf.most > window+takeAtOnce {
		t.Errorf("%d batches were taken at one time", a.buf.most)
	}
	if n := len(h.journal.events(audit.SealingBrought)); n != 3 {
		t.Errorf("%d sealing records were brought, expected one for each period", n)
	}
	if doc := <-a.down; doc != "config: config of gw-1" {
		t.Errorf("document %q", doc)
	}
	a.end()
	eventually(t, "the session ends in peace", func() bool {
		closed := h.journal.events(audit.SessionClosed)
		return len(closed) == 1 && closed[0].Reason == "disconnect"
	})
}

// TestServerKilledMidDrain: whatever the server loses by a kill, no batch counts as delivered that is not in its journal, and all
// arrive in the end. strictBuffer asks the journal at each acknowledgement.
func TestServerKilledMidDrain(t *testing.T) {
	const rounds, many, few = 4, 400, 50
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	p := a.ward.period()
	a.start()
	for i := range rounds {
		eventually(t, "the session of this round", func() bool { s := a.Status(); return s.Connected && s.Connects == uint64(i+1) })
		a.buf.add(a.ward.batches(p, telemetry.LaneVitals, many, 300)...)
		eventually(t, "part of the drain", func() bool { return a.buf.count(acked) >= i*(many+few)+many/4 })
		h.journal.set(func() { h.journal.held = true })
		// Whatever of the round was committed before: these wait for a commit that the kill takes away.
		a.buf.add(a.ward.batches(p, telemetry.LaneVitals, few, 300)...)
		eventually(t, "publishes wait for their commit", func() bool { return h.journal.publishes() > 0 })
		h.kill()
		h.start()
	}
	const n = rounds * (many + few)
	eventually(t, "all batches are acknowledged", func() bool { return a.buf.count(acked) == n })
	if got := h.journal.total(); got != n {
		t.Errorf("%d batches are journaled, expected %d", got, n)
	}
	if s := a.Status(); s.Connects != rounds+1 || s.Published <= n {
		t.Errorf("status %+v: the kills took nothing away", s)
	}
}

func TestRefusalParks(t *testing.T) {
	h := newHospital(t)
	h.lanes = 1<<telemetry.LaneAlarm | 1<<telemetry.LaneVitals
	h.start()
	a := newAgent(t, h)
	p := a.ward.period()
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 30, 50)...)
	forbidden := a.ward.batches(p, telemetry.LaneWaveform, 2, 50)
	a.buf.add(forbidden[0])
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 30, 50)...)
	a.buf.add(forbidden[1])
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 30, 50)...)
	a.start()
	eventually(t, "the rest is acknowledged", func() bool { return a.buf.count(acked) == 90 && a.buf.count(parked) == 2 })
	for _, b := range forbidden {
		if !strings.Contains(a.buf.reasons[b.ID], "lane is not allowed") || h.journal.commits(b.ID) != 0 {
			t.Errorf("parked for %q, %d commits", a.buf.reasons[b.ID], h.journal.commits(b.ID))
		}
	}
	if n := len(h.journal.events(audit.Refused)); n != 2 {
		t.Errorf("%d refusals: a parked batch was sent again", n)
	}
	if s := a.Status(); s.Parked != 2 {
		t.Errorf("status %+v", s)
	}
}

// TestRefusedIsTriedAgain: what was refused is sent once more when its turn comes. Refused again it is parked again, and other
// lanes flow; once the hospital takes it, it is delivered.
func TestRefusedIsTriedAgain(t *testing.T) {
	h := newHospital(t)
	h.lanes = 1<<telemetry.LaneAlarm | 1<<telemetry.LaneVitals
	h.start()
	a := newAgent(t, h)
	p := a.ward.period()
	refused := a.ward.batches(p, telemetry.LaneWaveform, 2, 50)
	a.buf.add(refused...)
	a.start()
	eventually(t, "both are parked", func() bool { return a.buf.count(parked) == 2 })
	offer := func() {
		a.buf.mu.Lock()
		a.buf.again = append(a.buf.again, refused...)
		a.buf.mu.Unlock()
		a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 20, 50)...)
	}
	offer()
	eventually(t, "both are refused again, and the rest is acknowledged", func() bool { return a.Status().Parked == 4 && a.buf.count(acked) == 20 })
	if n := len(h.journal.events(audit.Refused)); n < 4 || a.buf.count(parked) != 2 {
		t.Errorf("%d refusals, %d parked", n, a.buf.count(parked))
	}
	h.kill()
	h.lanes |= 1 << telemetry.LaneWaveform
	h.start()
	offer()
	eventually(t, "all are acknowledged", func() bool { return a.buf.count(acked) == 42 })
	for _, b := range refused {
		if h.journal.commits(b.ID) != 1 {
			t.Errorf("%d commits", h.journal.commits(b.ID))
		}
	}
}

func TestUnfitBatchesAreParkedAndNotSent(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	p := a.ward.period()
	batches := a.ward.batches(p, telemetry.LaneVitals, 5, 50)
	batches[1].Frame[len(batches[1].Frame)/2] ^= 1
	batches[3].Frame = batches[4].Frame
	orphan := newWard(t)
	lost := orphan.batches(orphan.period(), telemetry.LaneVitals, 1, 50)
	a.buf.add(batches...)
	a.buf.add(lost...)
	a.start()
	eventually(t, "all have met their fate", func() bool { return a.buf.count(acked) == 3 && a.buf.count(parked) == 3 })
	for id, want := range map[int]string{1: "damaged", 3: "another batch"} {
		if got := a.buf.reasons[batches[id].ID]; !strings.Contains(got, want) {
			t.Errorf("batch %d is parked for %q", id, got)
		}
	}
	if got := a.buf.reasons[lost[0].ID]; !strings.Contains(got, "sealing record does not exist") {
		t.Errorf("parked for %q", got)
	}
	if n := len(h.journal.events(audit.Refused)); n != 0 {
		t.Errorf("the server had to refuse %d", n)
	}
}

// TestSealingThatCannotBeHadHoldsOnlyItsOwn: a TPM that does not sign must not stop the batches whose record is signed.
func TestSealingThatCannotBeHadHoldsOnlyItsOwn(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	a.start()
	first := a.ward.period()
	a.buf.add(a.ward.batches(first, telemetry.LaneVitals, 1, 50)...)
	eventually(t, "the first batch is acknowledged", func() bool { return a.buf.count(acked) == 1 })
	a.ward.mu.Lock()
	a.ward.err = errors.New("the TPM does not answer")
	a.ward.mu.Unlock()
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 200, 50)...)
	a.buf.add(a.ward.batches(first, telemetry.LaneVitals, 0, 50)...)
	eventually(t, "the error shows", func() bool { return strings.Contains(a.Status().LastError, "TPM does not answer") })
	a.ward.mu.Lock()
	asked := a.ward.asked
	a.ward.err = nil
	a.ward.mu.Unlock()
	if asked > 20 {
		t.Errorf("the TPM was asked %d times", asked)
	}
	eventually(t, "all are acknowledged", func() bool { return a.buf.count(acked) == 201 })
}

// renewedInFlight is an agent with ten batches acknowledged, and ten in flight that the journal holds back, whose certificate is then renewed.
func renewedInFlight(t *testing.T, tune func(*timing)) (*hospital, *agent, *seal.Period) {
	t.Helper()
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	tune(&a.timing)
	p := a.ward.period()
	a.start()
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 50)...)
	eventually(t, "the first batches are acknowledged", func() bool { return a.buf.count(acked) == 10 })
	h.journal.set(func() { h.journal.held = true })
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 50)...)
	eventually(t, "publishes are in flight", func() bool { return h.journal.publishes() == 10 })
	a.renew(h.ca.gateway())
	return h, a, p
}

func TestRenewalMakesBeforeItBreaks(t *testing.T) {
	h, a, p := renewedInFlight(t, func(w *timing) { w.identity = 5 * time.Millisecond })
	h.journal.set(func() { h.journal.held = false })
	eventually(t, "the new session", func() bool { return a.Status().Connects == 2 })
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 50)...)
	eventually(t, "all are acknowledged", func() bool { return a.buf.count(acked) == 30 })
	for id, n := range h.journal.rows {
		if n != 1 {
			t.Errorf("batch %d was sent %d times", id.Number, n)
		}
	}
	// The goodbye on the old connection and the CONNECT on the new one reach the server in either order.
	closed, opened := h.journal.events(audit.SessionClosed), h.journal.events(audit.SessionOpened)
	if len(closed) != 1 || closed[0].Reason != "disconnect" && closed[0].Reason != "takeover" || len(opened) != 2 || opened[0].Actor.Serial == opened[1].Actor.Serial {
		t.Errorf("closed %+v, opened %+v", closed, opened)
	}
}

func TestShutdownWaitsForWhatIsInFlight(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	a.start()
	eventually(t, "the session", func() bool { return a.Status().Connected })
	h.journal.set(func() { h.journal.held = true })
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 10, 50)...)
	eventually(t, "publishes are in flight", func() bool { return h.journal.queued() == 11 })
	a.cancel()
	a.cancel = nil
	h.journal.set(func() { h.journal.held = false })
	if err := <-a.ran; err != nil {
		t.Fatal(err)
	}
	if n := a.buf.count(acked); n != 10 {
		t.Errorf("%d of 10 batches were acknowledged at the shutdown", n)
	}
}

func TestShutdownDoesNotWaitForEver(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	a.timing.drain = 50 * time.Millisecond
	a.start()
	eventually(t, "the session", func() bool { return a.Status().Connected })
	h.journal.set(func() { h.journal.held = true })
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 10, 50)...)
	eventually(t, "publishes are in flight", func() bool { return h.journal.queued() == 11 })
	a.end()
	if n := a.buf.count(waiting); n != 10 {
		t.Errorf("%d of 10 batches were given back", n)
	}
	h.journal.set(func() { h.journal.held = false })
}

func TestAServerThatNeverAcknowledgesCountsAsDead(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	a.timing.ack = 100 * time.Millisecond
	a.start()
	eventually(t, "the session", func() bool { return a.Status().Connected })
	h.journal.set(func() { h.journal.held = true })
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 10, 50)...)
	eventually(t, "the error shows", func() bool { return strings.Contains(a.Status().LastError, "no acknowledgement") })
	h.journal.set(func() { h.journal.held = false })
	eventually(t, "all are acknowledged", func() bool { return a.buf.count(acked) == 10 })
}

func TestErrorsTeach(t *testing.T) {
	other := newAuthority(t, "Evil Proxy CA")
	for _, tc := range []struct {
		name  string
		setUp func(h *hospital, a *agent)
		says  []string
	}{
		{"wrong CA", func(h *hospital, _ *agent) { h.tls.Certificates = []tls.Certificate{other.service("ingest")} },
			[]string{"Evil Proxy CA", "kit does not trust"}},
		{"wrong server id", func(h *hospital, _ *agent) { h.tls.Certificates = []tls.Certificate{h.ca.service("log")} },
			[]string{"spiffe://ward.example/service/log", "expected spiffe://ward.example/service/ingest"}},
		{"a gateway plays the server", func(h *hospital, _ *agent) { h.tls.Certificates = []tls.Certificate{h.ca.gateway()} },
			[]string{"kit does not trust", "incompatible key usage"}},
		{"expired server certificate", func(h *hospital, _ *agent) {
			h.tls.Certificates = []tls.Certificate{h.ca.issue(serverID.String(), x509.ExtKeyUsageServerAuth, time.Now().Add(-time.Hour))}
		}, []string{"not valid at this machine's time", "clock"}},
		{"certificate of a foreign CA", func(_ *hospital, a *agent) { a.cert = other.gateway() }, []string{"refused this gateway's certificate", "still registered"}},
		{"not admitted", func(h *hospital, _ *agent) { h.lanes = 0 }, []string{"does not admit this gateway", "wardlink gateway show"}},
		{"not MQTT", func(h *hospital, _ *agent) { h.tls.NextProtos = []string{"http/1.1"} }, []string{"does not speak MQTT"}},
		{"TLS 1.2", func(h *hospital, _ *agent) { h.tls.MinVersion, h.tls.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, []string{"TLS 1.3"}},
		{"nobody listens", func(_ *hospital, a *agent) { a.cfg.Servers = []string{freePort(t)} }, []string{"nothing listens there"}},
		{"no such name", func(_ *hospital, a *agent) { a.cfg.Servers = []string{"ingest.invalid:8883"} }, []string{"ingest.invalid:8883", "cannot be resolved"}},
		{"not enrolled", func(_ *hospital, a *agent) { a.cert = tls.Certificate{} }, []string{"no certificate yet", "not enrolled"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHospital(t)
			a := newAgentAt(t, h, func(h *hospital, a *agent) { tc.setUp(h, a) })
			a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 1, 50)...)
			var asked atomic.Bool
			a.cfg.NotAdmitted = func() { asked.Store(true) }
			a.start()
			eventually(t, "an error shows", func() bool { return a.Status().LastError != "" })
			s := a.Status()
			if asked.Load() != (tc.name == "not admitted") {
				t.Errorf("that the gateway is not admitted was told: %t", asked.Load())
			}
			for _, part := range tc.says {
				if !strings.Contains(s.LastError, part) {
					t.Errorf("%q does not say %q", s.LastError, part)
				}
			}
			if s.Connected || s.Published != 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// newAgentAt makes an agent for a hospital that is started after setUp has changed either of them.
func newAgentAt(t *testing.T, h *hospital, setUp func(*hospital, *agent)) *agent {
	t.Helper()
	a := newAgent(t, &hospital{t: h.t, ca: h.ca, journal: h.journal, addr: "127.0.0.1:1"})
	setUp(h, a)
	h.start()
	if a.cfg.Servers[0] == "127.0.0.1:1" {
		a.cfg.Servers = []string{h.addr}
	}
	return a
}

func freePort(t *testing.T) string {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer ln.Close()
	return ln.Addr().String()
}

func TestSecondServerIsTried(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	a.cfg.Servers = []string{freePort(t), h.addr}
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 1, 50)...)
	a.start()
	eventually(t, "the batch is acknowledged", func() bool { return a.buf.count(acked) == 1 })
}

func TestNewRefusesBadConfigurations(t *testing.T) {
	good := Config{Servers: []string{"a:1"}, Server: serverID, Roots: x509.NewCertPool(), Buffer: newStrictBuffer(t),
		Identity: func() (tls.Certificate, string, error) { return tls.Certificate{}, "", nil }, Sealing: newWard(t).sealing}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(c *Config){
		"no server":            func(c *Config) { c.Servers = nil },
		"server without port":  func(c *Config) { c.Servers = []string{"a"} },
		"server as URL":        func(c *Config) { c.Servers = []string{"tls://a:1"} },
		"identity of a person": func(c *Config) { c.Server = spiffe.ID{TrustDomain: domain, Kind: spiffe.Operator, Name: "x"} },
		"no roots":             func(c *Config) { c.Roots = nil },
		"no buffer":            func(c *Config) { c.Buffer = nil },
	} {
		bad := good
		spoil(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
