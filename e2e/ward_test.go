package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/child"
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
	h.must("wardlink", "--operator", h.operator(), "access", "issue", "reader", "--all", "--out", reader)
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
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
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
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
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
	return s.waiting()
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
