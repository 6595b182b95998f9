package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/agent/card"
	"wardlink/agent/egress"
	"wardlink/agent/uplink"
	"wardlink/buffer"
	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/internal/build"
	"wardlink/internal/durable"
	"wardlink/internal/sdnotify"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// Agent is one running gateway.
type Agent struct {
	cfg     Config
	kit     enroll.Kit
	held    HeldKit // where kit is from, and what lies beside it
	log     *slog.Logger
	buf     *buffer.Buffer
	intake  *intake
	seals   *sealings
	config  *configStore
	feeds   feeds
	devices deviceClocks
	link    *uplink.Uplink
	way     *egress.Way // for all that is sent or asked
	reports *reporter
	resend  *resender
	logs    *logKeeper
	started time.Time
	time    *timekeeper

	mu       sync.Mutex
	dev      *tpm.TPM // nil until it could be opened
	identity *enroll.Identity
	waiting  string              // fingerprint while the hospital has not approved this gateway
	former   string              // while it waits: the gateway whose disk this is, if it was with another board
	tpmState string              // what holds up the identity, for status; "" when nothing does
	cutOff   *enroll.CutOffError // why the hospital has cut this gateway off, in its words; nil while it has not
	ordered  []byte              // the order to wipe that holds; nil while there is none. Of runOrders alone
	leaving  string              // why, while it drains; "" while there is no order
	grave    *grave              // of a gateway that is wiped, or about to be; nil of all others
	renew    func()              // asks for a new certificate soon; nil until the identity is at work

	orders      chan []byte   // documents that may be orders to wipe
	askNow      chan struct{} // the time is to be asked at once
	reloads     chan func() (Config, error)
	reloaded    ReloadStatus // under mu
	stopSources func()       // of a running agent

	fingerprint string // of a TPM that is not enrolled yet; "" until it could be read

	consoleMu sync.Mutex
	console   string // what the console was given last
}

// New opens the buffer and prepares every part, so that whatever is wrong with configuration, kit or disk is said before the first
// message is accepted. It does not touch the TPM or the network.
func New(cfg Config, log *slog.Logger) (*Agent, error) {
	if _, err := cfg.LoadKit(); err != nil {
		return nil, err
	}
	if err := cfg.checkDefaults(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return nil, explainState(cfg.State, err)
	}
	way, err := cfg.Way()
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, way: way, log: log, started: time.Now(), tpmState: "not opened yet", orders: make(chan []byte, 1), askNow: make(chan struct{}, 1),
		reloads: make(chan func() (Config, error), 1)}
	if a.grave, err = openGrave(cfg.State); err != nil {
		return nil, explainState(cfg.State, err)
	}
	if a.grave != nil {
		return a, a.prepareTime()
	}
	if a.buf, err = openBuffer(cfg, a.evicting, log); err != nil {
		return nil, explainState(cfg.State, err)
	}
	if err := a.prepare(); err != nil {
		return nil, errors.Join(explainState(cfg.State, err), a.buf.Close())
	}
	return a, nil
}

// explainState adds to an error of the state directory what to mend, where it is about the directory and not about what is in it.
func explainState(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		owner := "another user"
		if info, statErr := os.Stat(dir); statErr == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				owner = fmt.Sprintf("user %d", st.Uid)
			}
		}
		return fmt.Errorf("state directory %s belongs to %s, and this agent runs as user %d: run it as that user, or chown -R the directory (%w)", dir, owner, os.Geteuid(), err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("state directory %s is on a file system that is read-only: mount it for writing; the kernel does that after errors, see dmesg (%w)", dir, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the disk of state directory %s is full: free space on it (%w)", dir, err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("state directory %s: set 'state:' in the configuration to a directory of the agent's own (%w)", dir, err)
	}
	return err
}

// prepareTime prepares what a decommissioned gateway needs, too.
func (a *Agent) prepareTime() (err error) {
	if a.held, err = a.cfg.adoptKit(a.log); err != nil {
		return err
	}
	a.kit = a.held.Kit
	if err := a.cfg.markDefaults(); err != nil {
		return err
	}
	clk, err := newClock()
	if err != nil {
		return err
	}
	clk.wall = a.cfg.Wall
	if a.time, err = openTimekeeper(filepath.Join(a.cfg.State, "time"), clk, a.log); err != nil {
		return err
	}
	a.raiseKnown()
	return nil
}

// raiseKnown raises the floor to what no clock can be before.
func (a *Agent) raiseKnown() {
	a.time.raise(build.Time(), "the build")
	a.time.raise(a.kit.Since(), "the kit's root certificate")
}

func (a *Agent) prepare() error {
	err := a.prepareTime()
	if err != nil {
		return err
	}
	clk := a.time.clock
	var epoch telemetry.Epoch
	rand.Read(epoch[:])
	if a.intake, err = newIntake(a.buf, a.kit.RecordsKey, epoch, clk, a.log); err != nil {
		return err
	}
	if a.seals, err = openSealings(filepath.Join(a.cfg.State, card.SealingsName), a.buf.Sealing, a.log); err != nil {
		return err
	}
	if a.config, err = openConfigStore(filepath.Join(a.cfg.State, "config"), a.kit.ConfigKey, func() int64 { return clk.now().UnixMilli() }, a.log); err != nil {
		return err
	}
	if a.logs, err = openLogKeeper(filepath.Join(a.cfg.State, "log"), a.kit.LogKey, a.config.logKey, a.log); err != nil {
		return err
	}
	for i, s := range a.cfg.Sources {
		f, err := a.openFeed(s)
		if err != nil {
			return fmt.Errorf("sources[%d]: %w", i, err)
		}
		a.feeds.list = append(a.feeds.list, f)
	}
	a.intake.open, a.intake.noted = a.connections, a.noteDevice
	every, err := a.cfg.reportEvery()
	if err != nil {
		return err
	}
	a.reports = &reporter{agent: a}
	a.reports.every.Store(int64(every))
	size, err := a.cfg.BufferCap()
	if err != nil {
		return err
	}
	a.resend = &resender{buf: a.buf, log: a.log, allowance: 2 * size, now: time.Now}
	a.link, err = uplink.New(uplink.Config{
		Servers: a.kit.Servers, Current: a.servers, Way: a.way, Server: a.serverID(), Roots: a.kit.Pool(), Identity: a.shown, Moment: a.time.moment,
		Buffer: linkBuffer{a.buf, a.reports}, Sealing: a.seals.get, Down: a.down, Again: a.resend.again, NotAdmitted: a.renewSoon, Log: a.log,
	})
	return err
}

// openBuffer opens the buffer, or makes it on a gateway that has none of our state yet. An enrolled gateway without its buffer has
// lost data: that is for a person to know, not for us to paper over.
func openBuffer(cfg Config, evicting func() error, log *slog.Logger) (*buffer.Buffer, error) {
	size, err := cfg.BufferCap()
	if err != nil {
		return nil, err
	}
	bc := buffer.Config{
		Dir: filepath.Join(cfg.State, "buffer"), Lanes: laneNames(), Order: laneOrder(), First: lanesFirst, Cap: size,
		Evict: evictOrder(), Report: evicting,
		Verify: func(frame []byte) error { _, err := seal.CheckFrame(frame); return err },
		Log:    log,
	}
	b, err := buffer.Open(bc)
	if !errors.Is(err, buffer.ErrMissing) {
		return b, err
	}
	if _, statErr := os.Stat(filepath.Join(cfg.State, "identity")); statErr == nil {
		return nil, fmt.Errorf("%w; this gateway is enrolled, so its buffer was here: bring %s back, or remove %s to begin anew",
			err, bc.Dir, cfg.State)
	}
	// Whoever made the state's directory may not have flushed its name, and a power cut would take all that is in it, acknowledged or not. A
	// parent that is not ours to open is taken to be older than this boot.
	if err := durable.SyncDir(filepath.Dir(filepath.Clean(cfg.State))); err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	if err := buffer.Create(bc); err != nil {
		return nil, err
	}
	return buffer.Open(bc)
}

// laneOrder puts the agent's own reports, of which one waits at a time, before telemetry that may take hours to drain.
func laneOrder() []string {
	var names []string
	for _, l := range []telemetry.Lane{telemetry.LaneAlarm, telemetry.LaneSelf, telemetry.LaneVitals, telemetry.LaneWaveform} {
		names = append(names, l.String())
	}
	return names
}

// lanesFirst: alarms and reports are given out before all telemetry, live or not.
const lanesFirst = 2

// evictOrder is in which order telemetry makes room at the buffer's cap. The agent's reports, which tell of it, never do.
func evictOrder() (names []string) {
	for _, l := range []telemetry.Lane{telemetry.LaneWaveform, telemetry.LaneVitals, telemetry.LaneAlarm} {
		names = append(names, l.String())
	}
	return names
}

func laneNames() []string {
	names := make([]string, telemetry.LaneCount)
	for l := range names {
		names[l] = telemetry.Lane(l).String()
	}
	return names
}

// Run serves until ctx ends: sources stop first, what they delivered is committed, then the uplink drains for a bounded time.
func (a *Agent) Run(ctx context.Context) error {
	if a.grave == nil {
		if err := a.serve(ctx); !errors.Is(err, errWiped) {
			return err
		}
	}
	a.log.Warn("this gateway is decommissioned")
	return a.rest(ctx)
}

// serve is Run until the gateway is decommissioned: errWiped.
func (a *Agent) serve(ctx context.Context) error {
	a.log.Info("agent started", "config", a.cfg.From, "kit", a.kit.ShortFingerprint(), "trust_domain", a.kit.TrustDomain,
		"epoch", a.intake.epoch.String(), "sources", len(a.feeds.all()))
	intakeCtx, stopIntake := context.WithCancel(context.WithoutCancel(ctx))
	defer stopIntake()
	intakeDone := make(chan error, 1)
	go func() { intakeDone <- a.intake.run(intakeCtx) }()

	g, gctx := errgroup.WithContext(ctx)
	sources, stopSources := context.WithCancel(gctx)
	defer stopSources()
	a.stopSources = stopSources
	a.feeds.run(g, gctx, sources)
	g.Go(func() error { return a.runReloads(gctx, sources) })
	g.Go(func() error { return a.runOrders(gctx) })
	g.Go(func() error { return a.link.Run(gctx) })
	g.Go(func() error { return a.runTime(gctx) })
	g.Go(func() error { return a.runSealings(gctx) })
	g.Go(func() error { return a.runIdentity(gctx) })
	g.Go(func() error { return a.runConfig(gctx) })
	g.Go(func() error { return a.serveStatus(gctx) })
	g.Go(func() error { return a.serveMetrics(gctx) })
	g.Go(func() error { return a.reports.run(gctx) })
	g.Go(func() error { rest(gctx); return nil })
	g.Go(func() error { sdnotify.Run(gctx, sdnotify.Service{Alive: a.alive, Log: a.log}); return nil })
	err := g.Wait()
	a.log.Info("agent stops")
	a.reports.last()
	stopIntake()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	stopped := <-intakeDone
	if errors.Is(err, errWiped) {
		a.recount()
	}
	return errors.Join(err, stopped, a.buf.Close())
}

// runIdentity opens the TPM, enrols and renews for ever. Nothing here ends the agent: without an identity telemetry is buffered.
func (a *Agent) runIdentity(ctx context.Context) error {
	dev, err := a.openTPM(ctx)
	if err != nil {
		return nil // only when ctx ended
	}
	defer dev.Close()
	a.mu.Lock()
	a.dev = dev
	a.mu.Unlock()
	a.introduce(ctx, dev)
	client := a.httpClient()
	defer client.CloseIdleConnections()
	base := "https://" + a.kit.Servers[0]
	e, err := enroll.New(enroll.Config{
		TPM: dev, Dir: filepath.Join(a.cfg.State, "identity"),
		Attestation: base + "/attestation", Directory: base + "/acme/attest/directory", HTTP: client, Log: a.log, Now: a.time.best,
		Serial: Serial(), EventLog: a.cfg.EventLog, CodeFile: filepath.Join(a.cfg.State, "enrol-code"),
	})
	if err != nil {
		a.setTPMState(err.Error())
		a.log.Error("identity cannot be used; telemetry is buffered", "error", err)
		<-ctx.Done()
		return nil
	}
	a.mu.Lock()
	a.renew = e.Hurry
	a.mu.Unlock()
	if err := e.Run(ctx, a.useIdentity, a.identityTrouble); err != nil && ctx.Err() == nil {
		a.setTPMState(err.Error())
		a.log.Error("identity ended; telemetry is buffered", "error", err)
		<-ctx.Done()
	}
	return nil
}

// openTPM tries until the device is there: some appear only seconds after boot.
func (a *Agent) openTPM(ctx context.Context) (*tpm.TPM, error) {
	wait := time.Second
	for {
		dev, err := tpm.Open(ctx, a.cfg.TPM)
		if err == nil {
			a.setTPMState("")
			return dev, nil
		}
		a.setTPMState(err.Error())
		a.log.Error("TPM cannot be opened; telemetry is buffered", "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 10*time.Second)
	}
}

func (a *Agent) useIdentity(id *enroll.Identity) {
	id.Certificate.PrivateKey = doubting{id.Signer(), a.renewSoon}
	if err := a.seals.use(id.Signer()); err != nil {
		a.log.Error("identity cannot sign", "error", err)
		return
	}
	a.intake.sign()
	a.time.raise(id.NotBefore, "this gateway's certificate")
	a.mu.Lock()
	a.identity, a.waiting, a.tpmState, a.cutOff = id, "", "", nil
	a.mu.Unlock()
	a.showConsole()
	a.log.Info("identity in use", "gateway", id.Gateway, "not_after", id.NotAfter.UTC().Format(time.RFC3339))
}

// identityTrouble notes why there is no new certificate yet.
func (a *Agent) identityTrouble(err error) {
	defer a.showConsole()
	var w *enroll.WaitingError
	a.mu.Lock()
	defer a.mu.Unlock()
	var r *enroll.CutOffError
	switch {
	case errors.As(err, &w):
		a.waiting, a.former, a.tpmState = w.Fingerprint, w.Former, ""
	case errors.As(err, &r):
		a.cutOff, a.tpmState = r, ""
		a.order(r.Order)
	default: // what was known of being cut off stays: the hospital has not said otherwise
		a.tpmState = err.Error()
	}
}

// doubting is a device key that has the identity looked at when the TPM does not load it any more: the TPM was cleared, and new keys must be
// made now, not at the certificate's half.
type doubting struct {
	crypto.Signer
	look func()
}

// Sign implements crypto.Signer.
func (d doubting) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := d.Signer.Sign(r, digest, opts)
	if errors.Is(err, tpm.ErrForeign) {
		d.look()
	}
	return signature, err
}

// renewSoon is for when the hospital does not let the certificate in, or the TPM does not load its key. Renewing it says why, or mends it.
func (a *Agent) renewSoon() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.renew != nil {
		a.renew()
	}
}

func (a *Agent) setTPMState(s string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tpmState = s
}

// errNoIdentity is what the uplink waits out.
var errNoIdentity = errors.New("not enrolled")

func (a *Agent) credentials() (tls.Certificate, string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.identity == nil {
		return tls.Certificate{}, "", errNoIdentity
	}
	return a.identity.Certificate, a.identity.Gateway, nil
}

// shown is what the uplink shows. A certificate that has ended is shown for a while yet, for the hospital to judge: its CA may be down.
func (a *Agent) shown() (tls.Certificate, string, error) {
	cert, gateway, err := a.credentials()
	if err != nil {
		return cert, gateway, err
	}
	if m := a.time.moment(); !m.Floor && m.Time.Sub(cert.Leaf.NotAfter) >= enroll.ExpiredGrace {
		return tls.Certificate{}, "", fmt.Errorf("its certificate ended at %s; %w until it is renewed", cert.Leaf.NotAfter.UTC().Format(time.RFC3339), errNoIdentity)
	}
	return cert, gateway, nil
}

// down receives the hospital's documents. Those of later releases are ignored.
func (a *Agent) down(doc telemetry.Doc, body []byte) {
	switch doc {
	case telemetry.DocResend:
		if err := a.resend.ask(body); err != nil {
			a.log.Warn("the hospital's question for lost batches cannot be read", "error", err)
		}
		return
	case telemetry.DocWipe:
		a.order(body)
		return
	case telemetry.DocCheckpoint:
		_ = a.logs.offer(body) // it has told, and status shows it
		return
	case telemetry.DocConfig:
	default:
		return
	}
	_, gateway, err := a.credentials()
	if err != nil {
		return
	}
	if err := a.config.offer(body, gateway); err != nil {
		a.log.Warn("configuration refused", "error", err)
	}
}

// connections is how many bedside connections are open; the intake stops gathering when all of them wait.
func (a *Agent) connections() int {
	n := 0
	for _, s := range a.feeds.all() {
		n += s.Stats().Connections
	}
	return n
}
