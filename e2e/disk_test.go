package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/internal/child"
	"wardlink/internal/mounttest"
	"wardlink/server/sqldb"
)

// ward is a hospital whose journal, database and log lie on small disks, with one gateway and one reader.
type ward struct {
	*hospital
	*testing.T
	box                    *box
	journal, database, log disk
	reader                 *http.Client
}

// newWard starts a server, on small disks or on none of its own, a gateway, and a reader.
func newWard(t *testing.T, small bool) *ward {
	h := initHospital(t)
	w := &ward{hospital: h, T: t}
	if small {
		// The journal's files are 64 MB each, reserved when they are begun, and each start begins one.
		w.database = mount(t, h.server(), "64m")
		w.journal = mount(t, filepath.Join(h.server(), "journal"), "400m")
		w.log = mount(t, filepath.Join(h.server(), "log"), "32m")
	}
	w.begin()
	w.box.start()
	w.register()
	return w
}

// wardOf starts a server and a reader, and makes a gateway whose agent is not started and which nobody has registered.
func wardOf(t *testing.T, h *hospital) *ward {
	w := &ward{hospital: h, T: t}
	w.begin()
	return w
}

func (w *ward) begin() {
	w.Helper()
	h := w.hospital
	w.Cleanup(func() {
		if w.Failed() {
			text, _ := os.ReadFile(filepath.Join(h.dir, "server.log"))
			w.Logf("the server's last words:\n%s", text[max(0, len(text)-6000):])
			text, _ = os.ReadFile(filepath.Join(h.dir, "box", "agent.log"))
			w.Logf("the agent's last words:\n%s", text[max(0, len(text)-6000):])
		}
	})
	h.run()
	h.must("wardlink", "--operator", h.operator(), "provision", "kit", "--server", h.gateways, "--out", h.kit())
	w.box = h.newBox("box", h.kit())
	reader := filepath.Join(h.dir, "reader")
	h.must("wardlink", "--operator", h.operator(), "access", "issue", "reader", "--out", reader)
	cert, err := tls.LoadX509KeyPair(filepath.Join(reader, "reader.crt"), filepath.Join(reader, "reader.key"))
	if err != nil {
		w.Fatal(err)
	}
	w.reader = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true,
	}}}
}

// register enters the box's TPM as a gateway.
func (w *ward) register() {
	w.Helper()
	var id struct {
		EK string `json:"ek_sha256"`
	}
	w.await("the gateway's fingerprint", func(ctx context.Context) (bool, error) {
		out, err := child.Output(ctx, program("wardlink-agent"), "identity", "--json", "--config", w.box.config())
		return err == nil && json.Unmarshal(out, &id) == nil && id.EK != "", nil
	})
	csv := filepath.Join(w.hospital.dir, "gateways.csv")
	if err := os.WriteFile(csv, []byte("id,ek_sha256,site,ward,profile\nicu-7,"+id.EK+",s,w,default\n"), 0o600); err != nil {
		w.Fatal(err)
	}
	w.must("wardlink", "--operator", w.operator(), "gateway", "import", csv)
}

// reading is an Observation as a client of FHIR sees it.
type reading struct {
	ID                string `json:"id"`
	ResourceType      string `json:"resourceType"`
	EffectiveDateTime string `json:"effectiveDateTime"`
	ValueQuantity     struct {
		Value json.Number `json:"value"`
	} `json:"valueQuantity"`
	Extension []struct {
		URL          string `json:"url"`
		ValueInstant string `json:"valueInstant"`
		Reference    struct {
			Display string `json:"display"`
		} `json:"valueReference"`
	} `json:"extension"`
}

// search asks for all observations of the box's patient: the answer's status, and they or the OperationOutcome's text.
func (w *ward) search() (status int, found []reading, outcome string) {
	w.Helper()
	return w.searchFor("patient.identifier=urn:oid:1.2.3%7CCANARY7")
}

// searchFor asks for all observations that a query names.
func (w *ward) searchFor(query string) (status int, found []reading, outcome string) {
	w.Helper()
	resp, err := w.reader.Get("https://" + w.hospital.hospital + "/fhir/Observation?_count=100&" + query)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	var body struct {
		ResourceType string `json:"resourceType"`
		Entry        []struct {
			Resource reading `json:"resource"`
		} `json:"entry"`
		Issue []struct {
			Diagnostics string `json:"diagnostics"`
		} `json:"issue"`
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	if err := json.Unmarshal(data, &body); err != nil {
		w.Fatalf("FHIR answered %s: %.200s", resp.Status, data)
	}
	if body.ResourceType == "OperationOutcome" {
		return resp.StatusCode, nil, body.Issue[0].Diagnostics
	}
	for _, e := range body.Entry {
		if e.Resource.ResourceType == "Observation" {
			found = append(found, e.Resource)
		}
	}
	return resp.StatusCode, found, ""
}

// read is search that counts.
func (w *ward) read() (status, count int, outcome string) {
	w.Helper()
	status, found, outcome := w.search()
	ids := map[string]bool{}
	for _, o := range found {
		ids[o.ID] = true
	}
	if len(ids) != len(found) {
		w.Errorf("%d observations have %d ids", len(found), len(ids))
	}
	return status, len(found), outcome
}

// find gives the observation of a value.
func (w *ward) find(value string) reading {
	w.Helper()
	_, found, outcome := w.search()
	for _, o := range found {
		if o.ValueQuantity.Value.String() == value {
			return o
		}
	}
	w.Fatalf("no observation of %s: %+v %s", value, found, outcome)
	return reading{}
}

// refusesReads: nothing is read that cannot be journaled.
func (w *ward) refusesReads() {
	w.Helper()
	if status, _, outcome := w.read(); status != http.StatusServiceUnavailable || !strings.Contains(outcome, "could not be recorded") {
		w.Errorf("FHIR answers %d %q; expected 503 and that the access could not be recorded", status, outcome)
	}
}

// refusesActs: an operator's act fails, within bounds, and says why.
func (w *ward) refusesActs(why string, args ...string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := child.Output(ctx, program("wardlink"), append([]string{"--operator", w.operator()}, args...)...)
	if err == nil || !strings.Contains(err.Error(), why) {
		w.Errorf("wardlink %s: %v; expected it to say %q", strings.Join(args, " "), err, why)
	}
}

// ready gives what a health probe is told.
func (w *ward) ready(ctx context.Context) string {
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+w.operators+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := c.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return strings.TrimSpace(string(text))
}

func (w *ward) awaitReady(want string) {
	w.Helper()
	got := ""
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := child.Until(ctx, "readiness", []*child.Process{w.proc}, func(ctx context.Context) (bool, error) {
		if now := w.ready(ctx); ctx.Err() == nil {
			got = now
		}
		return got == want, nil
	}); err != nil {
		w.Fatalf("/readyz says %q, expected %q: %v", got, want, err)
	}
}

// takes: the monitor's message is acknowledged, whatever the server's state.
func (w *ward) takes(control string) {
	w.Helper()
	if ack := w.box.send(control); !strings.Contains(ack, "MSA|CA|"+control) {
		w.Fatalf("acknowledgement %q of %s", ack, control)
	}
}

func (w *ward) awaitObservations(n int) {
	w.Helper()
	status, count, outcome := 0, 0, ""
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	if err := child.Until(ctx, "observations", []*child.Process{w.proc}, func(context.Context) (bool, error) {
		status, count, outcome = w.read()
		return status == http.StatusOK && count >= n, nil
	}); err != nil {
		w.Fatalf("FHIR answers %d, %d observations, %q; expected %d: %v", status, count, outcome, n, err)
	}
	if count != n {
		w.Fatalf("%d observations; expected %d: something is doubled", count, n)
	}
}

// backlog is how many batches wait on the gateway.
func (w *ward) backlog(ctx context.Context) int {
	s, err := w.box.status(ctx)
	if err != nil {
		return -1
	}
	n := 0
	for _, l := range s.Buffer.Lanes {
		n += l.Waiting
	}
	return n
}

func (w *ward) awaitDelivered() {
	w.Helper()
	w.await("delivery", func(ctx context.Context) (bool, error) { return w.backlog(ctx) == 0, nil })
}

// lines counts the lines of the server's log that hold text.
func (w *ward) lines(text string) int {
	data, err := os.ReadFile(filepath.Join(w.hospital.dir, "server.log"))
	if err != nil {
		w.Fatal(err)
	}
	return bytes.Count(data, []byte(text))
}

// newest is the journal file that is being written.
func (w *ward) newest() string {
	files, err := filepath.Glob(filepath.Join(w.server(), "journal", "*.seg"))
	if err != nil || len(files) == 0 {
		all, _ := os.ReadDir(filepath.Join(w.server(), "journal"))
		w.Fatalf("no journal file among %v: %v", all, err)
	}
	return slices.Max(files)
}

// TestFullDisks fills the server's disks, the journal's, the database's, the log's. Full means refuse: what cannot be journaled is neither
// acknowledged nor shown; what is journaled waits for the rest; nothing ends, and everything goes on by itself once there is room.
func TestFullDisks(t *testing.T) {
	t.Parallel()
	if !inOwnMounts(t) {
		return
	}
	w := newWard(t, true)
	w.takes("M1")
	w.awaitObservations(1)
	w.awaitReady("ready")

	w.fullJournal()
	w.fullDatabase()
	w.fullLog()
	w.revokedWithoutAJournal()

	// In the end the log holds everything, once, and verifies.
	w.await("the log", func(ctx context.Context) (bool, error) {
		var s struct {
			Journal uint64 `json:"journal_seq"`
			Log     uint64 `json:"log_seq"`
		}
		w.ask(&s, "status")
		return s.Journal == s.Log, nil
	})
	w.proc.Stop()
	w.must("wardlink", "audit", "verify", "--dir", w.server())
	for _, c := range []struct {
		what string
		want int
	}{{"server.started", 3}, {"session.opened", 0}} {
		out := w.must("wardlink", "audit", "list", "--json", "--dir", w.server(), "--type", c.what)
		if n := bytes.Count(out, []byte(c.what)); c.want > 0 && n != c.want || n == 0 {
			t.Errorf("%d leaves of %s; expected %d:\n%s", n, c.what, c.want, out)
		}
	}
}

func (w *ward) fullJournal() {
	w.Helper()
	mounttest.Unreserve(w.T, w.newest())
	w.journal.fill()
	// Pages that former commits gave back take some more entries; each read is one.
	w.await("a read that cannot be journaled", func(context.Context) (bool, error) {
		status, _, _ := w.read()
		return status != http.StatusOK, nil
	})
	w.takes("M2")
	w.awaitReady("not ready: journal")
	w.refusesReads()
	w.refusesActs("cannot be journaled", "gateway", "list")
	w.stopsAt("journaled", "journal cannot be written")
	w.refusesActs("space", "access", "issue", "other", "--out", filepath.Join(w.hospital.dir, "other"))
	if n := w.backlog(context.Background()); n == 0 {
		w.Error("the gateway has no backlog: something was acknowledged without a journal")
	}

	// A start with a full disk is a start: the operators' port answers, and refuses the same.
	w.proc.Kill()
	w.hospital.run()
	w.awaitReady("not ready: journal")
	w.refusesReads()
	// The gateway's waits double: 3 s see a handful of attempts at most.
	before := w.lines("a gateway is turned away")
	time.Sleep(3 * time.Second)
	if n := w.lines("a gateway is turned away") - before; n > 10 {
		w.Errorf("%d sessions in 3 s at a full journal", n)
	}
	if n := w.lines("the journal cannot be written"); n > 20 {
		w.Errorf("the log says %d times that the journal cannot be written", n)
	}
	// Room, but a file system that takes no writes: the same.
	w.journal.Closed()
	w.journal.free()
	w.awaitReady("not ready: journal")
	w.refusesReads()
	w.journal.Opened()
	w.awaitReady("ready")
	w.awaitObservations(2)
}

func (w *ward) fullDatabase() {
	w.Helper()
	w.database.fill()
	w.takes("M3")
	w.awaitDelivered() // the journal is the first word
	w.awaitReady("not ready: records")
	w.stopsAt("opened", "does not open batches")
	w.refusesActs("the disk is full", "access", "issue", "other", "--out", filepath.Join(w.hospital.dir, "other"))
	if status, count, outcome := w.read(); status != http.StatusOK || count != 2 {
		w.Errorf("FHIR answers %d, %d observations, %q; expected what the database has", status, count, outcome)
	}
	w.proc.Kill()
	w.hospital.run()
	w.awaitReady("not ready: records")
	w.database.free()
	w.awaitReady("ready")
	w.awaitObservations(3)
}

func (w *ward) fullLog() {
	w.Helper()
	w.log.fill()
	w.takes("M4")
	w.awaitObservations(4)
	w.awaitReady("not ready: log")
	if err := w.proc.Died(); err != nil {
		w.Fatal(err)
	}
	w.log.free()
	w.awaitReady("ready")
}

// revokedWithoutAJournal: a gateway can be cut off while nothing can be journaled; its event follows.
func (w *ward) revokedWithoutAJournal() {
	w.Helper()
	sessions := func(want int) {
		w.Helper()
		w.await("sessions", func(context.Context) (bool, error) {
			var s struct {
				Sessions int `json:"sessions"`
			}
			w.ask(&s, "status")
			return s.Sessions == want, nil
		})
	}
	sessions(1)
	// The agent must not end the session itself by publishing something that cannot be journaled.
	status, err := w.box.status(context.Background())
	if err != nil {
		w.Fatal(err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGSTOP); err != nil {
		w.Fatal(err)
	}
	mounttest.Unreserve(w.T, w.newest())
	w.journal.fill()
	w.await("a read that cannot be journaled", func(context.Context) (bool, error) {
		status, _, _ := w.read()
		return status != http.StatusOK, nil
	})
	sessions(1)
	began := time.Now()
	out, err := child.Output(context.Background(), program("wardlink"), "--operator", w.operator(), "--json", "gateway", "revoke", "icu-7", "--reason", "stolen")
	if err != nil || !bytes.Contains(out, []byte(`"journaled": false`)) {
		w.Errorf("revoke: %s, %v; expected it done, and its event to follow", out, err)
	}
	sessions(0)
	w.Logf("the session was cut %v after the command began", time.Since(began).Round(time.Millisecond))
	if err := syscall.Kill(status.PID, syscall.SIGCONT); err != nil {
		w.Fatal(err)
	}
	w.journal.free()
	w.awaitReady("ready")
	w.await("the revocation's event", func(ctx context.Context) (bool, error) {
		out, err := child.Output(ctx, program("wardlink"), "audit", "list", "--json", "--dir", w.server(), "--type", "gateway.revoked")
		return bytes.Count(out, []byte("gateway.revoked")) == 1, err
	})
}

// TestLockedDatabase: another process holds the database's write lock, for longer than the server waits for it once. Ingest goes on, since
// the journal is the first word; records wait and catch up; acts wait a bounded time and say why.
func TestLockedDatabase(t *testing.T) {
	t.Parallel()
	w := newWard(t, false)
	w.takes("M1")
	w.awaitObservations(1)
	other, err := sqldb.OpenBeside(filepath.Join(w.server(), "wardlink.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	locked, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- other.Write(context.Background(), func(*sql.Tx) error {
			close(locked)
			<-release
			return nil
		})
	}()
	<-locked
	w.takes("M2")
	w.awaitDelivered()
	// Acts that come together wait together, not one after the other.
	began := time.Now()
	var acts errgroup.Group
	for i := range 4 {
		acts.Go(func() error {
			w.refusesActs("another process holds it locked", "access", "issue", fmt.Sprintf("other%d", i), "--out", filepath.Join(w.hospital.dir, fmt.Sprintf("other%d", i)))
			return nil
		})
	}
	_ = acts.Wait()
	if waited := time.Since(began); waited > 25*time.Second {
		t.Errorf("acts waited %v for a locked database", waited)
	}
	if status, count, outcome := w.read(); status != http.StatusOK || count != 1 {
		t.Errorf("FHIR answers %d, %d observations, %q; expected what the database has", status, count, outcome)
	}
	w.awaitReady("not ready: records")
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.awaitReady("ready")
	w.awaitObservations(2)
}
