package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/internal/child"
	"wardlink/internal/durable"
	"wardlink/internal/pgserver"
	"wardlink/server/api/client"
)

// trustDomain of the demonstration's hospital.
const trustDomain = "demo.wardlink.internal"

// theatre is one demonstration: its folder, its processes, what it found.
type theatre struct {
	Options
	dir     string // everything of this demonstration
	server  string // the server's directory
	doors   child.Doors
	ports   ports
	stages  *stages
	network *network // between the gateways and the server
	gate    *gate    // before the monitors
	fleet   []*gateway
	api     *client.Client

	backedUp      time.Time
	backedUpAcked uint64   // of the first gateway, at that time
	newLog        string   // origin of the log that the restore began
	mallory       *gateway // is enrolled like the others, and then carried away
	malloryEK     [32]byte // SHA-256 of its endorsement key

	mu       sync.Mutex
	pg       *pgserver.Server // nil without Postgres
	nodes    []*ingestNode
	balancer *child.Process
	front    string         // where gateways are served: the server's own port, or the balancer
	proc     *child.Process // the server
	summary  Summary        // guarded while the monitors send
}

// errInterrupted is Ctrl-C's: nothing failed, so nothing is kept to be looked at.
var errInterrupted = errors.New("interrupted; every process is stopped, every file removed")

// Run plays the demonstration. It returns an error when something could not be done, when the summary is not OK and when ctx ends
// before the end. No process outlives it. The folder is kept only if something failed by itself.
func Run(ctx context.Context, o Options) (Summary, error) {
	if err := o.check(); err != nil {
		return Summary{}, err
	}
	if o.Bin == "" {
		self, err := os.Executable()
		if err != nil {
			return Summary{}, err
		}
		o.Bin = filepath.Dir(self)
	}
	dir, err := os.MkdirTemp("", "wl") // short: Unix sockets live below it
	if err != nil {
		return Summary{}, err
	}
	t := &theatre{summary: Summary{Refusals: []Refusal{}}, Options: o, dir: dir, server: filepath.Join(dir, "server"), stages: &stages{out: o.Out, plain: o.Plain}}
	t.gate = newGate(t.windows())
	err = t.perform(ctx)
	if err == nil && o.Keep {
		t.invite()
		t.watch(ctx)
	}
	t.end()
	switch {
	case err == nil:
		return t.summary, os.RemoveAll(dir)
	case ctx.Err() != nil: // whatever else failed, failed because its process or its wait was interrupted
		fmt.Fprintln(o.Out)
		return t.summary, errors.Join(errInterrupted, os.RemoveAll(dir))
	default:
		return t.summary, fmt.Errorf("%w\n(logs and data are kept in %s)", err, dir)
	}
}

// watch waits for the interrupt. Whoever looks around may well stop an agent or the server, to see what is said of it then: that is told
// once, with what starts it again, and the rest keeps running.
func (t *theatre) watch(ctx context.Context) {
	again := map[*child.Process]string{t.process(): t.bin("wardlink-server") + " run --dir " + t.server}
	for _, g := range t.boxes() {
		if p := g.process(); p != nil {
			again[p] = t.bin("wardlink-agent") + " run --config " + g.config()
		}
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	told := map[*child.Process]bool{}
	for {
		for _, p := range t.running() {
			err := p.Died()
			if err == nil || told[p] {
				continue
			}
			told[p] = true
			fmt.Fprintf(t.Out, "%v\nThe rest keeps running until you press Ctrl-C.", err)
			if command := again[p]; command != "" {
				fmt.Fprintf(t.Out, " To start it again: %s", command)
			}
			fmt.Fprint(t.Out, "\n\n")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// perform plays within the limit and shows what came out.
func (t *theatre) perform(ctx context.Context) error {
	limited, cancel := context.WithTimeoutCause(ctx, t.Limit, fmt.Errorf("the demonstration took longer than %s", t.Limit))
	defer cancel()
	begun := time.Now()
	err := t.play(limited)
	t.summary.Seconds = time.Since(begun).Round(100 * time.Millisecond).Seconds()
	t.summary.Gateways, t.summary.Chaos, t.summary.Nodes, t.summary.Former = t.Gateways, t.Chaos, t.Nodes, t.Former
	if t.Chaos > 0 {
		t.summary.Seed = t.Seed
	}
	if t.network != nil {
		t.summary.OutageSeconds = t.network.outages().Round(100 * time.Millisecond).Seconds()
	}
	if t.Summary != "" {
		data, jerr := json.MarshalIndent(t.summary, "", "  ")
		err = errors.Join(err, jerr, durable.WriteFile(t.Summary, append(data, '\n'), 0o644))
	}
	if err == nil && t.Inspect != nil {
		err = t.Inspect(t.dir)
	}
	if err != nil {
		return err
	}
	t.table()
	if !t.summary.OK() {
		return errors.New("the demonstration did not show what it promises; see the table above")
	}
	return nil
}

// play is the plot.
func (t *theatre) play(ctx context.Context) error {
	enrol := []func(context.Context) error{t.register, t.startAgents}
	if t.inOneGo() {
		enrol = []func(context.Context) error{t.register, t.waitInList, t.approveAll}
	}
	for _, act := range slices.Concat([]func(context.Context) error{t.makeTPMs, t.startServer}, enrol, []func(context.Context) error{
		t.stream, t.refill, t.settle, t.account, t.compare, t.catchUp, t.findRefusals, t.verifyLog, t.findReads,
		t.proveOne,
	}) {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

// acts are what goes wrong while the monitors send, in this order.
func (t *theatre) acts() []func(context.Context) error {
	if t.Chaos > 0 {
		return []func(context.Context) error{t.chaos, t.attack}
	}
	if t.Disaster { // the agent's former life delivered something, and the backup lacks the end of it
		return []func(context.Context) error{t.makeBackup, t.killAgent, t.loseServer}
	}
	acts := []func(context.Context) error{t.killAgent}
	if t.bootsOthers() {
		acts = append(acts, t.bootOther)
	}
	if t.Nodes > 0 {
		acts = append(acts, t.killNode)
	}
	return append(acts, t.cutNetwork, t.killServer, t.attack)
}

// windows are the parts of the stream: one for each act and one for what comes after. Chaos has no parts.
func (t *theatre) windows() int {
	if t.Chaos > 0 {
		return 1
	}
	return len(t.acts()) + 1
}

func (t *theatre) bin(name string) string { return filepath.Join(t.Bin, name) }

func (t *theatre) operator() string { return filepath.Join(t.server, "operator", "operator.json") }

// starting bounds the agents that enrol at a time: a TPM makes an RSA key then, which an emulated one does on our processors.
const starting = 4

// stream lets the monitors send, and has one thing after the other go wrong meanwhile. When it returns no monitor sends any more, and
// agents, server and network are well.
func (t *theatre) stream(ctx context.Context) error {
	t.stages.begin("monitor")
	for i, gw := range t.fleet {
		if err := gw.plugMonitor(t.Options, i, t.gate); err != nil {
			return err
		}
	}
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	g, mctx := errgroup.WithContext(sending)
	context.AfterFunc(mctx, t.gate.finish) // a row that waits for its window must not hold up the end
	for _, gw := range t.fleet {
		g.Go(func() error { return gw.monitor.Run(mctx) })
	}
	g.Go(func() error { return t.misfortune(mctx) })
	ended := make(chan error, 1)
	go func() { ended <- g.Wait() }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				return err
			}
			sent, acked := t.sent()
			t.stages.done("%d samples sent, %d acknowledged", sent, acked)
			return nil
		case <-tick.C:
		}
		sent, acked := t.sent()
		t.stages.progress("%d samples sent, %d acknowledged", sent, acked)
		for _, p := range t.running() {
			if err := p.Died(); err != nil {
				cancel()
				<-ended // its error is the death's consequence
				return err
			}
		}
	}
}

// misfortune plays the acts, each in a window of the stream of its own, and then lets the monitors send the rest.
func (t *theatre) misfortune(ctx context.Context) error {
	watching, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { t.watchBacklog(watching) })
	if !t.Disaster { // what a restored server lacks is missing until the gateways have brought it
		watcher.Go(func() { t.watchAccount(watching) })
	}
	defer watcher.Wait()
	defer stop()
	for _, act := range t.acts() {
		t.gate.next()
		if err := act(ctx); err != nil {
			return err
		}
	}
	t.gate.finish()
	return nil
}

func (t *theatre) sent() (sent, acknowledged int) {
	for _, g := range t.fleet {
		totals := g.monitor.Account().Totals()
		sent, acknowledged = sent+totals.Sent, acknowledged+totals.Acknowledged
	}
	return sent, acknowledged
}

// running are all processes that must not end by themselves.
func (t *theatre) running() []*child.Process {
	ps := append([]*child.Process{t.process()}, t.nodeProcesses()...)
	for _, g := range t.boxes() {
		ps = append(ps, g.tpm.Child)
		if p := g.process(); p != nil {
			ps = append(ps, p)
		}
	}
	return ps
}

// settle waits until the agents have delivered everything and the server has opened and logged what it journaled.
func (t *theatre) settle(ctx context.Context) error {
	t.stages.begin("delivery")
	err := child.Until(ctx, "delivery", t.running(), func(ctx context.Context) (bool, error) {
		backlog := uint64(0)
		for _, g := range t.fleet {
			s, err := g.status(ctx)
			if err != nil {
				return false, nil // the agent is starting again
			}
			backlog += s.waiting()
		}
		var s client.Status
		if err := t.api.Get(ctx, "/v1/status", nil, &s); err != nil {
			return false, err
		}
		t.stages.progress("%d batches buffered, %d stored, %d pending; log at %d of %d", backlog, s.Stored, s.Pending, s.LogSeq, s.JournalSeq)
		return backlog == 0 && s.Pending == 0 && s.RecordsSeq == s.JournalSeq && s.LogSeq == s.JournalSeq, nil
	})
	if err != nil {
		return err
	}
	for _, g := range t.fleet {
		s, err := g.status(ctx)
		if err != nil {
			return err
		}
		t.summary.BatchesAcknowledged += s.acknowledged()
	}
	var s client.Status
	if err := t.api.Get(ctx, "/v1/status", nil, &s); err != nil {
		return err
	}
	t.stages.done("%d sealed batches journaled, opened and logged", s.Stored)
	return nil
}

// compare holds every monitor's account against the hospital's FHIR answers.
func (t *theatre) compare(ctx context.Context) error {
	t.stages.begin("compare")
	fetch, err := t.reader()
	if err != nil {
		return err
	}
	var all Comparison
	for _, g := range t.fleet {
		c, err := Compare(ctx, "https://"+t.ports.hospital, g.monitor.Account(), fetch)
		if err != nil {
			return err
		}
		all.Add(c)
		t.stages.progress("%d readings compared", all.Sent)
	}
	s := &t.summary
	s.SamplesSent, s.SamplesAcknowledged, s.SamplesStored = all.Sent, all.Acknowledged, all.Stored
	s.Missing, s.Duplicates = all.Missing+all.NoReadings.Missing, all.Duplicates+all.Unexpected
	s.Mismatched, s.NoReadings = all.Mismatched+all.Unmarked, all.NoReadings.Stored
	for _, e := range all.Examples {
		t.stages.note("%s", e)
	}
	s.Compared = true
	if s.Quarantine != nil {
		s.Quarantine.Readings = all.Quarantined
	}
	t.stages.done("%d of %d samples in FHIR with value, unit and time as sent", all.Stored, all.Sent)
	return nil
}

// end stops everything, gateways first.
func (t *theatre) end() {
	var wg sync.WaitGroup
	for _, g := range t.boxes() {
		wg.Go(g.stop)
	}
	wg.Wait()
	if t.network != nil {
		t.network.close()
	}
	for _, p := range t.nodeProcesses() {
		p.Stop()
	}
	if p := t.process(); p != nil {
		p.Stop()
	}
	if t.pg != nil {
		_ = t.pg.Close() // its files are a folder of its own, and nothing is left to be lost
	}
}
