package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/demo/bedside"
	"wardlink/internal/child"
	"wardlink/internal/swtpm"
)

const (
	readerName = "demo-reader"
	// pace is how fast a simulated second goes by: fast enough for a minute's demonstration, slow enough that the SIGKILL falls
	// amid the stream.
	pace = 30 * time.Millisecond
)

// ports are the addresses of this demonstration's server.
type ports struct{ gateways, hospital, operators string }

// gateway is one gateway of the demonstration with its TPM, its agent and the monitor that feeds it.
type gateway struct {
	name, ward string
	dir        string
	mllp       string
	factory    *swtpm.Factory
	tpm        *swtpm.Process
	monitor    *bedside.Monitor
	rows       int

	fingerprint string // under which it waited for approval, if it did

	mu    sync.Mutex
	agent *child.Process
}

// boxes are all gateways, also the one that will be carried away.
func (t *theatre) boxes() []*gateway {
	if t.mallory == nil {
		return t.fleet
	}
	return append(slices.Clone(t.fleet), t.mallory)
}

// makeTPMs manufactures and starts a TPM for each gateway.
func (t *theatre) makeTPMs(ctx context.Context) error {
	t.stages.begin("TPM")
	factory, err := swtpm.NewFactory(filepath.Join(t.dir, "tpm"))
	if err != nil {
		return err
	}
	for i := range t.Gateways {
		t.fleet = append(t.fleet, newGateway(t.dir, fmt.Sprintf("gw-%02d", i+1), factory))
	}
	if !t.Disaster {
		t.mallory = newGateway(t.dir, mallory, factory)
	}
	boxes := t.boxes()
	// The first one makes its maker's certificates, the others can come together.
	if err := boxes[0].makeTPM(ctx, &t.doors); err != nil {
		return err
	}
	made := atomic.Int32{}
	made.Store(1)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for _, b := range boxes[1:] {
		g.Go(func() error {
			err := b.makeTPM(gctx, &t.doors)
			t.stages.progress("%d of %d", made.Add(1), len(boxes))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	t.stages.done("%d manufactured, each with its own endorsement key", len(boxes))
	return nil
}

func newGateway(dir, name string, factory *swtpm.Factory) *gateway {
	return &gateway{name: name, ward: "icu-1", dir: filepath.Join(dir, name), factory: factory}
}

func (g *gateway) makeTPM(ctx context.Context, d *child.Doors) (err error) {
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return err
	}
	state := filepath.Join(g.dir, "tpm")
	// swtpm_setup runs a TPM of its own and must get to stop it: an interrupt waits the second or two that it takes.
	if err := ctx.Err(); err != nil {
		return err
	}
	making, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	if err := g.factory.Make(making, state); err != nil {
		return err
	}
	if g.mllp, err = d.Free(); err != nil {
		return err
	}
	if g.tpm, err = swtpm.Start(ctx, state, filepath.Join(g.dir, "t")); err != nil {
		return err
	}
	return g.measure(`\EFI\boot\loader.efi`)
}

func (g *gateway) config() string { return filepath.Join(g.dir, "agent.yaml") }

// configure writes the agent's configuration, with what a former release's knows of it.
func (g *gateway) configure(kit string, former bool) error {
	text := fmt.Sprintf("kit: %s\nstate: %s\ntpm: swtpm:%s\nreport_every: %s\nsources:\n  - {id: bed-1, mllp: %q}\n",
		kit, filepath.Join(g.dir, "state"), g.tpm.Socket, reportEvery, g.mllp)
	if !former {
		text += "event_log: " + g.eventLog() + "\n"
	}
	return os.WriteFile(g.config(), []byte(text), 0o600)
}

// identity asks the agent for its TPM's endorsement key.
func (g *gateway) identity(ctx context.Context, agent string) (ek [32]byte, err error) {
	out, err := child.Output(ctx, agent, "identity", "--json", "--config", g.config())
	if err != nil {
		return ek, err
	}
	var id struct {
		EK string `json:"ek_sha256"`
	}
	if err := json.Unmarshal(out, &id); err != nil {
		return ek, fmt.Errorf("identity of %s: %w", g.name, err)
	}
	hash, err := hex.DecodeString(id.EK)
	if err != nil || len(hash) != len(ek) {
		return ek, fmt.Errorf("identity of %s: ek_sha256 is %q", g.name, id.EK)
	}
	return [32]byte(hash), nil
}

func (g *gateway) startAgent(program string) error {
	p, err := child.Start("agent of "+g.name, filepath.Join(g.dir, "agent.log"), program, "run", "--config", g.config())
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.agent = p
	g.mu.Unlock()
	return nil
}

func (g *gateway) process() *child.Process {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.agent
}

// agentStatus is what the demonstration reads of an agent's status.
type agentStatus struct {
	Epoch   string `json:"epoch"`
	Gateway string `json:"gateway"`
	Waiting string `json:"waiting"`
	Uplink  struct {
		Connected bool      `json:"connected"`
		Since     time.Time `json:"since"` // since when Connected is what it is
		LastError string    `json:"last_error"`
		Again     uint64    `json:"again"`
	} `json:"uplink"`
	Resend struct {
		Asked, Brought, Gone uint64
		Working              bool
	} `json:"resend"`
	Log    struct{ Origin, Doubt string } `json:"log"`
	Buffer struct {
		Lanes []struct {
			Name    string `json:"name"`
			Stored  uint64 `json:"stored"`
			Waiting uint64 `json:"waiting"`
		} `json:"lanes"`
	} `json:"buffer"`
}

// acknowledged is how many of the batches in the buffer the hospital has acknowledged, those of the agent's former life among them. The
// agent's reports of itself are not counted: one that a newer replaced before it was sent waits no more, and was never acknowledged.
func (s agentStatus) acknowledged() (n uint64) {
	for _, l := range s.Buffer.Lanes {
		if l.Name != "self" {
			n += l.Stored - l.Waiting
		}
	}
	return n
}

// waiting is how many batches the hospital has not acknowledged yet.
func (s agentStatus) waiting() (n uint64) {
	for _, l := range s.Buffer.Lanes {
		n += l.Waiting
	}
	return n
}

// status asks the agent over its socket, as 'wardlink-agent status --json' does.
func (g *gateway) status(ctx context.Context) (agentStatus, error) {
	var s agentStatus
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(g.dir, "state", "agent.sock"))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// plugMonitor attaches a monitor with a patient of its own, behind the gate.
func (g *gateway) plugMonitor(o Options, i int, at *gate) error {
	var src bedside.Source
	if o.Recording != "" {
		g.rows = o.recording.Rows()
		src = o.recording.Replay(o.recording.EndOf(time.Now(), o.Speed))
		// Under chaos the recording lasts as long as it, and is sent whole.
		src = at.source(src, g.rows, time.Duration(o.Chaos)*time.Second/time.Duration(g.rows), false)
	} else {
		g.rows = o.rows()
		from := time.Now().Add(-time.Duration(g.rows) * time.Second).Truncate(time.Second)
		src = at.source(bedside.Simulate(bedside.DefaultSimulation(uint64(i+1), from, g.rows)), g.rows, pace, o.Chaos > 0)
	}
	var err error
	g.monitor, err = bedside.New(bedside.Config{
		Address: g.mllp,
		Patient: bedside.Patient{ID: fmt.Sprintf("WL%04d", i+1), Namespace: "WARDSIM", OID: "2.25.1234"},
		Ward:    g.ward, Bed: fmt.Sprintf("%02d", i+1), Device: 0x00126C00000000 + uint64(i+1), Source: src,
		Speed: o.Speed,
	})
	return err
}

// lane is one in which the gateway published what its monitor sent: a recording may have no readings.
func (g *gateway) lane() string {
	for range g.monitor.Account().Readings() {
		return "vitals"
	}
	return "waveform"
}

func (g *gateway) stop() {
	if p := g.process(); p != nil {
		p.Stop()
	}
	if g.tpm != nil {
		g.tpm.Stop()
	}
}

// reader is the hospital's system: it reads FHIR with the service account's certificate.
func (t *theatre) reader() (Fetch, error) {
	dir := filepath.Join(t.dir, "reader")
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, readerName+".crt"), filepath.Join(dir, readerName+".key"))
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(filepath.Join(dir, "root.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(root) {
		return nil, errors.New("root.crt holds no certificate")
	}
	c := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{cert}},
	}}
	return func(ctx context.Context, url string) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", "application/fhir+json")
		resp, err := c.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s: %.300s", resp.Status, body)
		}
		t.summary.FHIRReads++
		return body, nil
	}, nil
}

// invite says how to look around while everything runs.
func (t *theatre) invite() {
	dir := filepath.Join(t.dir, "reader")
	curl := fmt.Sprintf("curl --cert %s/%s.crt --key %s/%s.key --cacert %s/root.crt", dir, readerName, dir, readerName, dir)
	op := t.operator()
	fmt.Fprintf(t.Out, `
Everything keeps running until you press Ctrl-C. Files: %s

  hospital   https://%s/fhir      certificate %s/%s.crt, key %s/%s.key, CA %s/root.crt
  operators  https://%s           operator's file %s

To try:

  %s 'https://%s/fhir/Observation?patient.identifier=urn:oid:2.25.1234|WL0001&code=147842&_count=3'
  export WARDLINK_OPERATOR=%s
  %s gateway list
  %s trace --gateway %s --follow     # then stop its agent: kill %d
  %s account --epochs
  %s alerts
  %s audit list --outcome denied
  %s doctor --config %s

`, t.dir, t.ports.hospital, dir, readerName, dir, readerName, dir, t.ports.operators, op,
		curl, t.ports.hospital, op, t.bin("wardlink"), t.bin("wardlink"), t.fleet[0].name, t.fleet[0].process().PID(),
		t.bin("wardlink"), t.bin("wardlink"), t.bin("wardlink"), t.bin("wardlink-agent"), t.fleet[0].config())
}
