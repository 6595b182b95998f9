// Package doctor looks for what keeps a gateway's telemetry from the hospital, from the configuration to the server's answer, and
// names the mend of each thing it finds. It changes nothing. It disturbs nothing either: while an agent runs, what only that agent
// can look at (its TPM, its buffer, its ports) is asked of it over its socket, and its MQTT session is left alone.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"wardlink/agent"
	"wardlink/agent/egress"
	"wardlink/buffer"
	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/internal/build"
	"wardlink/telemetry/seal"
)

// Time is how long a whole examination takes at most.
const Time = 10 * time.Second

// The areas of findings that are made here; agent has the others.
const (
	AreaConfiguration = "configuration"
	AreaKit           = agent.AreaKit
	AreaAgent         = "agent"
	AreaCertificate   = "certificate"
	AreaFiles         = "files"
)

// Report is what an examination found.
type Report struct {
	At       time.Time       `json:"at"`
	Level    agent.Level     `json:"level"` // the worst of the findings
	Findings []agent.Finding `json:"findings"`

	// Fingerprint is that of the TPM of a gateway which is not enrolled; "" of one that is, and where the TPM could not be read.
	Fingerprint string `json:"fingerprint,omitempty"`
}

// Examine looks at everything that the configuration file names. What is broken is in the report, never an error. It is over within
// Time, also when a server, the TPM or the agent does not answer.
func Examine(ctx context.Context, path string) Report {
	ctx, cancel := context.WithTimeout(ctx, Time)
	defer cancel()
	r := Report{}
	r.Findings = r.examine(ctx, path)
	r.At, r.Level = time.Now(), agent.Worst(r.Findings)
	return r
}

func (r *Report) examine(ctx context.Context, path string) []agent.Finding {
	cfg, err := agent.LoadConfig(path)
	if err == nil {
		err = cfg.CheckHere()
	}
	if err != nil {
		mend := "without it the agent does not start, and nothing else can be looked at"
		if errors.Is(err, errDenied) {
			mend = asRoot
		}
		return []agent.Finding{{Area: AreaConfiguration, Level: agent.Stops, Found: err.Error(), Mend: mend}}
	}
	out := []agent.Finding{{Area: AreaConfiguration, Level: agent.Well, Found: fmt.Sprintf("%s; %s, buffer of %s", cfg.From, agent.Count(len(cfg.Sources), "source"), cfg.Buffer.Cap)}}
	if cfg.From != agent.BuiltIn {
		out = append(out, judgeMode(cfg.From, AreaConfiguration)...)
	}
	held, err := cfg.LoadKit()
	if err != nil {
		out = append(out, agent.Finding{Area: AreaKit, Level: agent.Stops, Found: err.Error(), Mend: "without it the agent does not start"})
		return append(out, local(ctx, cfg)...)
	}
	kit := held.Kit
	out = append(out, agent.Finding{Area: AreaKit, Level: agent.Well, Found: fmt.Sprintf("of %s, fingerprint %s, %s; %s", kit.TrustDomain, kit.ShortFingerprint(), agent.Count(len(kit.Servers), "server"), held.Path)})
	out = append(out, judgeMode(held.Path, AreaKit)...)
	out = append(out, held.Examine()...)

	way, err := cfg.Way()
	if err != nil { // it was checked with the configuration
		return append(out, agent.Finding{Area: AreaConfiguration, Level: agent.Stops, Found: err.Error()})
	}

	var running *agent.Status
	s, silent := agent.AskStatus(ctx, cfg) // once: an agent that hangs takes half of the time with each question
	if silent == nil {
		running = &s
	}
	if running != nil && running.Wiped != "" {
		return append(append(out, judgeRunning(s, kit)...), s.Examine(time.Now())...) // it needs neither TPM nor certificate nor server
	}

	// The steps to the servers, the agent, and the files have nothing to do with each other.
	servers := serversOf(running, kit)
	reaches := make([]reach, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		wg.Go(func() { reaches[i] = probe(ctx, way, server, kit) })
	}
	var patient patient
	wg.Go(func() { patient = look(ctx, cfg, way, kit, running, silent) })
	files := judgeState(cfg.State)
	wg.Wait()

	now := time.Now()
	r.Fingerprint = patient.fingerprint
	out = append(out, patient.agent...)
	out = append(out, patient.tpm...)
	chain, chainErr := enroll.Chain(filepath.Join(cfg.State, "identity"))
	out = append(out, judgeCertificate(chain, chainErr, kit, now)...)
	out = append(out, judgeClock(now, agent.ReadKernelClock(), floorOf(kit, chain), offsets(reaches), patient.connected()))
	out = append(out, judgeServers(reaches, patient, kit, now)...)
	out = append(out, patient.inside...)
	return append(out, files...)
}

// serversOf is the kit's servers, and those before them that the running agent knows from the hospital's configuration.
func serversOf(running *agent.Status, kit enroll.Kit) (servers []string) {
	if running != nil && running.Uplink.Connected {
		for _, f := range running.Uplink.Before {
			servers = append(servers, f.Server)
		}
		servers = append(servers, running.Uplink.Server)
	}
	for _, s := range kit.Servers {
		if !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	return servers
}

// local is what can be looked at without a kit.
func local(ctx context.Context, cfg agent.Config) []agent.Finding {
	out := judgeState(cfg.State)
	s, err := agent.AskStatus(ctx, cfg)
	if err == nil {
		return append(out, s.Examine(time.Now())...)
	}
	out = append(out, diskOf(cfg))
	return append(out, judgePorts(cfg, errors.Is(err, errDenied))...)
}

// patient is the agent as it could be looked at: running, or at rest.
type patient struct {
	status     *agent.Status // nil when none runs
	agent      []agent.Finding
	tpm        []agent.Finding
	authorised []agent.Finding

	fingerprint string // of a TPM that is not enrolled

	inside []agent.Finding // buffer, disk, sources, and the uplink of a running one
}

// connected tells whether the running agent has its connection: then the server believes it, whatever else looks odd.
func (p patient) connected() bool { return p.status != nil && p.status.Uplink.Connected }

// look asks the running agent, or looks itself where none runs; silent is then why there is no status.
func look(ctx context.Context, cfg agent.Config, way *egress.Way, kit enroll.Kit, running *agent.Status, silent error) (p patient) {
	if running != nil {
		p.status = running
		p.agent = judgeRunning(*running, kit)
		p.inside = slices.DeleteFunc(running.Examine(time.Now()), func(f agent.Finding) bool { return f.Area == AreaKit }) // the files are looked at anew
		p.fingerprint = running.Short
		found, err := agent.AskProbe(ctx, cfg)
		if err != nil {
			p.tpm = []agent.Finding{{Area: agent.AreaTPM, Level: agent.Warning, Found: fmt.Sprintf("the running agent does not say how its TPM is: %v", err),
				Mend: "it may be busy with a slow TPM; run this again"}}
		}
		for _, f := range found {
			if f.Area == agent.AreaAuthorisation {
				p.authorised = append(p.authorised, f)
			} else {
				p.tpm = append(p.tpm, f)
			}
		}
		return p
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.tpm, p.authorised, p.fingerprint = lookAtTPM(ctx, cfg, way, kit) })
	held, inside := lookAtBuffer(ctx, cfg)
	p.agent = []agent.Finding{judgeAbsent(silent, held)}
	p.inside = append(inside, diskOf(cfg))
	unseen := errors.Is(silent, errDenied)
	p.inside = append(p.inside, judgePorts(cfg, unseen)...)
	wg.Wait()
	if unseen {
		p.tpm = doubtful(p.tpm)
	}
	return p
}

// doubtful is what of a TPM somebody found who may not ask the agent: that it does not open is what it looks like while an agent has it, too.
func doubtful(found []agent.Finding) []agent.Finding {
	for i := range found {
		if found[i].Level == agent.Stops {
			found[i].Level, found[i].Mend = agent.Warning, asRoot+": this one may not open the TPM, or the agent has it"
		}
	}
	return found
}

// lookAtTPM opens the TPM, which nobody else uses while no agent runs. Keys and certificate are read, never made.
func lookAtTPM(ctx context.Context, cfg agent.Config, way *egress.Way, kit enroll.Kit) (found, authorised []agent.Finding, fingerprint string) {
	ctx, cancel := context.WithTimeout(ctx, Time-time.Second)
	defer cancel()
	dev, err := tpm.Open(ctx, cfg.TPM)
	if err != nil {
		return []agent.Finding{agent.JudgeTPM("it does not open", err, "without its TPM this gateway can neither enrol nor connect; telemetry is buffered")}, nil, ""
	}
	defer dev.Close()
	dir := filepath.Join(cfg.State, "identity")
	if _, err := enroll.Chain(dir); errors.Is(err, enroll.ErrNone) {
		if ek, err := dev.EK(ctx); err == nil {
			fingerprint = enroll.Fingerprint(ek.Hash)
		}
	}
	key, err := enroll.DeviceKey(ctx, dev, dir)
	if errors.Is(err, tpm.ErrMissing) && !errors.Is(err, tpm.ErrForeign) {
		return agent.ProbeTPM(ctx, dev, nil), nil, fingerprint
	}
	if err != nil {
		return append(agent.ProbeTPM(ctx, dev, nil), agent.JudgeTPM("the gateway's keys do not load", err, "see the directory "+dir)), nil, fingerprint
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if chain, err := enroll.Chain(dir); err == nil {
		var raw [][]byte
		for _, c := range chain {
			raw = append(raw, c.Raw)
		}
		cert, err := key.Certificate(raw)
		if err != nil {
			found = append(found, agent.Finding{Area: AreaCertificate, Level: agent.Warning, Found: err.Error(), Mend: "the agent enrols anew by itself when it starts"})
		} else {
			authorised = agent.ProbeAuthorisation(ctx, way, kit, cert)
		}
	}
	return append(agent.ProbeTPM(ctx, dev, key), found...), authorised, fingerprint
}

// lookAtBuffer reads the files of an agent that does not run. held tells that some process has them open all the same.
func lookAtBuffer(ctx context.Context, cfg agent.Config) (held bool, out []agent.Finding) {
	type answer struct {
		report buffer.Report
		err    error
	}
	// It reads every batch, and cannot be called back; a program that ends soon may leave it behind.
	done := make(chan answer, 1)
	go func() {
		r, err := buffer.Check(filepath.Join(cfg.State, "buffer"), func(frame []byte) error { _, err := seal.CheckFrame(frame); return err })
		done <- answer{r, err}
	}()
	select {
	case a := <-done:
		if errors.Is(a.err, buffer.ErrLocked) {
			return true, nil
		}
		return false, judgeBuffer(a.report, a.err, cfg)
	case <-ctx.Done():
		return false, []agent.Finding{{Area: agent.AreaBuffer, Level: agent.Warning, Found: "its files could not all be read in time", Mend: "run 'wardlink-agent buffer check', which takes the time it needs"}}
	}
}

// judgeRunning looks whether the agent that runs is the one that the files speak of.
func judgeRunning(s agent.Status, kit enroll.Kit) []agent.Finding {
	out := []agent.Finding{{Area: AreaAgent, Level: agent.Well, Found: fmt.Sprintf("version %s runs as process %d for %s", s.Version, s.PID, agent.Ago(time.Since(s.Started)))}}
	if s.Kit != kit.ShortFingerprint() {
		out = append(out, agent.Finding{Area: AreaAgent, Level: agent.Warning, Found: fmt.Sprintf("it began with kit %s; the file is another one by now, %s", s.Kit, kit.ShortFingerprint()),
			Mend: "restart the agent so that it uses the new kit"})
	}
	if s.Version != build.Version {
		out = append(out, agent.Finding{Area: AreaAgent, Level: agent.Warning, Found: fmt.Sprintf("version %s runs, but %s is installed", s.Version, build.Version), Mend: "restart the agent"})
	}
	return append(out, judgeCores(s.PID)...)
}

func judgeAbsent(err error, held bool) agent.Finding {
	f := agent.Finding{Area: AreaAgent, Level: agent.Stops, Found: "it does not run: nothing is taken in, and nothing is sent", Mend: "systemctl start wardlink-agent, and see its log (journalctl -u wardlink-agent)"}
	switch {
	case errors.Is(err, errDenied):
		f.Level, f.Found, f.Mend = agent.Warning, err.Error(), "run this as root or as the agent's user, which sees more"
	case held:
		f.Found, f.Mend = "a process has the buffer open but does not answer on its socket", "it is starting, or stuck: see its log (journalctl -u wardlink-agent), and restart it"
	}
	return f
}
