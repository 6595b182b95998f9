package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/agent"
	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/swtpm"
	"wardlink/server/api/client"
	"wardlink/server/keys"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

// ward is a server whose services can be stopped one by one, an agent with a TPM, and a monitor.
type ward struct {
	t      *testing.T
	server *Server
	log    lockedLog
	mllp   string
	speak  atomic.Pointer[func(n int) string] // what the monitor sends, ten times a second; nil: nothing
}

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// service runs one service until the function that it gives is called, or the test ends.
func (w *ward) service(name string, run func(ctx context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("%s: %v", name, err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func newWard(t *testing.T) *ward {
	t.Helper()
	base, err := os.MkdirTemp("", "wlt") // short enough for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	c := DefaultConfig()
	c.TrustDomain, c.Names = "ward.example", []string{"localhost", "127.0.0.1"}
	c.Gateways, c.Hospital, c.Operators = freeAddress(t), freeAddress(t), freeAddress(t)
	dir := filepath.Join(base, "s")
	if err := Init(t.Context(), InitOptions{Dir: dir, Config: c, Passphrase: keys.NewPassphrase(), Operator: "operator"}); err != nil {
		t.Fatal(err)
	}
	w := &ward{t: t, mllp: freeAddress(t)}
	log := slog.New(slog.NewTextHandler(&w.log, nil))
	if w.server, err = New(dir, log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.server.close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
	w.server.silence = time.Second
	w.service("log", w.server.runLog)
	w.service("ingest", w.server.ingest.Run)
	w.startAgent(base, log)
	return w
}

// startAgent runs a real agent with a TPM of its own. It is not enrolled yet.
func (w *ward) startAgent(base string, log *slog.Logger) {
	w.t.Helper()
	factory, err := swtpm.NewFactory(filepath.Join(base, "f"))
	if err != nil {
		w.t.Fatal(err)
	}
	state := filepath.Join(base, "tpm")
	if err := factory.Make(w.t.Context(), state); err != nil {
		w.t.Fatal(err)
	}
	tpm, err := swtpm.Start(context.Background(), state, filepath.Join(base, "t"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(tpm.Stop)
	s := w.server
	kit, err := enroll.Kit{
		TrustDomain: s.cfg.TrustDomain, Servers: []string{s.cfg.Gateways}, Roots: []*x509.Certificate{s.keys.Root}, RecordsKey: s.keys.Records.Public(),
		ConfigKey: s.configPublic(), LogKey: s.keys.LogVerifier,
	}.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	path := filepath.Join(base, "kit.json")
	if err := os.WriteFile(path, kit, 0o600); err != nil {
		w.t.Fatal(err)
	}
	cfg, err := agent.ParseConfig(fmt.Appendf(nil, "kit: %s\nstate: %s\ntpm: swtpm:%s\nreport_every: 1s\nsources: [{id: bed-1, mllp: %q}]\n",
		path, filepath.Join(base, "a"), tpm.Socket, w.mllp))
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := agent.New(cfg, log.With("side", "gateway"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.service("agent", a.Run)
	w.service("monitor", w.monitor)
}

// monitor sends ten messages a second and reads the answers; it connects again whenever it has to.
func (w *ward) monitor(ctx context.Context) error {
	var conn net.Conn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		speak := w.speak.Load()
		if speak == nil {
			continue
		}
		if conn == nil {
			var err error
			if conn, err = net.Dial("tcp", w.mllp); err != nil {
				continue
			}
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, err := io.WriteString(conn, "\x0b"+(*speak)(n)+"\x1c\r")
		if err == nil {
			_, err = conn.Read(make([]byte, 4096))
		}
		if err != nil {
			conn.Close()
			conn = nil
		}
	}
}

// says sets what the monitor sends: an ORU with these segments behind its MSH; nothing for none.
func (w *ward) says(kind string, segments ...string) {
	if kind == "" {
		w.speak.Store(nil)
		return
	}
	speak := func(n int) string {
		msh := fmt.Sprintf("MSH|^~\\&|MON|ICU|WL|WL|20261122120000+0000||%s|M%d|T|2.6", kind, n)
		return strings.Join(append([]string{msh}, segments...), "\r") + "\r"
	}
	w.speak.Store(&speak)
}

const (
	patient = "PID|||4711^^^HOSP&1.2.3&ISO"
	heart   = "OBR|1|||X|||20261122120000+0000\rOBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R"
)

func (w *ward) measures() { w.says("ORU^R01^ORU_R01", patient, heart) }

// until asks for the trace until the station is the first that stopped ("" for none).
func (w *ward) until(station, why string) client.Trace {
	w.t.Helper()
	var last []client.Trace
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		last, err = w.server.trace(w.t.Context(), "icu-7", "bed-1")
		if err == nil && len(last) == 1 && last[0].Stopped == station && strings.Contains(last[0].Why, why) && (station == "" || last[0].Mend != "") {
			return last[0]
		}
	}
	w.t.Fatalf("%q does not stop (%q): %+v %v", station, why, last, err)
	return client.Trace{}
}

// listen gives a service's port back after it was closed.
func (w *ward) listen(into *net.Listener, addr string) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			*into = ln
			return
		}
		if time.Now().After(end) {
			w.t.Fatal(err)
		}
	}
}

// TestTraceNamesTheStationThatStopped stops each in turn, with real parts on both sides. (What ends an agent's disk or the server's is
// tested where there are small disks: e2e.)
func TestTraceNamesTheStationThatStopped(t *testing.T) {
	w := newWard(t)
	s := w.server
	if _, err := s.trace(t.Context(), "icu-7", ""); !errors.Is(err, registry.ErrUnknown) {
		t.Fatalf("a gateway that nobody knows: %v", err)
	}
	serveHospital := func() (stop func()) {
		return w.service("hospital", func(ctx context.Context) error {
			return s.serveHTTP(ctx, s.listeners.hospital, "fhir", s.hospital.Load, s.fhir)
		})
	}
	stopHospital := serveHospital()
	stopGateways := w.service("gateways", s.serveGateways)
	stopRecords := w.service("records", s.records.Run)

	var waiting []registry.Waiting
	for end := time.Now().Add(time.Minute); len(waiting) == 0; time.Sleep(20 * time.Millisecond) {
		var err error
		if waiting, err = s.registry.Waiting(t.Context()); err != nil || time.Now().After(end) {
			t.Fatalf("no TPM waits: %v", err)
		}
	}
	if err := s.registry.Approve(t.Context(), audit.Actor{ID: "spiffe://ward.example/operator/operator"}, "", waiting[0].Fingerprint, registry.Gateway{ID: "icu-7"}); err != nil {
		t.Fatal(err)
	}
	first, err := s.trace(t.Context(), "icu-7", "")
	if err != nil || len(first) != 1 || first[0].Stopped == "" {
		t.Fatalf("before anything came: %+v %v", first, err)
	}
	w.until("received", "has never sent a message")

	w.measures()
	well := w.until("", "data arrives")
	for well.Stations[2].Last == nil { // until a report has told of the first batch
		well = w.until("", "data arrives")
	}
	for _, station := range well.Stations {
		if station.State != "ok" || station.Last == nil && station.Name != "not understood" {
			t.Errorf("%+v", station)
		}
	}
	w.says("")
	w.until("received", "silent")
	w.says("ADT^A01", patient)
	w.until("not understood", "no reading in them is understood")
	bare := func(int) string { return "no message at all" }
	w.speak.Store(&bare)
	w.until("not understood", "refused")
	w.says("ORU^R01^ORU_R01", heart)
	w.until("associated", "no patient")
	w.measures()
	w.until("", "")

	stopRecords()
	w.until("opened", "has not opened anything")
	again, err := records.New(records.Config{
		DB: s.db, Outbox: s.outbox, Journal: s.journal, Registry: s.registry, Key: s.keys.Records, Pseudonym: s.keys.Pseudonym, Log: s.log,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.records = again
	w.service("records", again.Run)
	w.until("", "")

	stopHospital()
	w.until("visible", "does not answer")
	w.listen(&s.listeners.hospital, s.cfg.Hospital)
	serveHospital()
	w.until("", "")

	stopGateways() // the network is cut, or ingest is down: from here that is the same
	cut := w.until("published", "not been connected")
	if cut.Stations[0].KnownFor < 0 || cut.Stations[0].Last == nil || cut.Stations[5].State != "waits" {
		t.Errorf("%+v", cut.Stations)
	}
	if _, _, err := s.registry.Revoke(t.Context(), audit.Actor{ID: "spiffe://ward.example/operator/operator"}, "", "icu-7", "stolen"); err != nil {
		t.Fatal(err)
	}
	w.until("published", "revoked: stolen")
	bySource, err := s.trace(t.Context(), "", "bed-1")
	if err != nil || len(bySource) != 1 || bySource[0].Gateway != "icu-7" {
		t.Errorf("by source: %+v %v", bySource, err)
	}
	if _, err := s.trace(t.Context(), "", "bed-9"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("a source that nobody has: %v", err)
	}
	for _, tr := range append(bySource, well, cut) {
		if text := fmt.Sprintf("%+v", tr); strings.Contains(text, "4711") {
			t.Errorf("a patient is in a trace: %s", text)
		}
	}
}

// TestSourcesThatAThiefNames: a gateway that reports nothing may name its sources as it likes, in what devices sent.
func TestSourcesThatAThiefNames(t *testing.T) {
	var a records.Account
	for i := range 100_000 {
		a.Sources = append(a.Sources, records.SourceAccount{ID: fmt.Sprint(i)})
	}
	if n := len(sourcesOf(a, "")); n != telemetry.MaxSources {
		t.Errorf("%d sources are traced", n)
	}
	if n := len(sourcesOf(a, "99999")); n != 1 {
		t.Errorf("%d sources of the name that was asked for", n)
	}
	if got := printable("bed-7\x1b[2J\u009b1mü"); got != "bed-7?[2J?1mü" {
		t.Errorf("%q", got)
	}
}
