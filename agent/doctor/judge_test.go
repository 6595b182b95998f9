package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/agent"
	"wardlink/enroll"
)

func says(t *testing.T, what string, f agent.Finding, level agent.Level, found, mend string) {
	t.Helper()
	if f.Level != level || !strings.Contains(f.Found, found) || !strings.Contains(f.Mend, mend) {
		t.Errorf("%s: %+v\nwant %s with %q and %q", what, f, level, found, mend)
	}
}

func TestCertificate(t *testing.T) {
	root := newAuthority(t, "Ward Root")
	kit := kitOf(t, root, "x:1")
	chain := func(a *authority, id string, from, until time.Duration) []*x509.Certificate {
		return []*x509.Certificate{a.issue(id, from, until).Leaf}
	}
	const gateway = "spiffe://ward.test/gateway/bed-7"
	for name, c := range map[string]struct {
		chain       []*x509.Certificate
		err         error
		level       agent.Level
		found, mend string
	}{
		"well":            {chain(root, gateway, -time.Hour, 23*time.Hour), nil, agent.Well, gateway, ""},
		"none":            {nil, enroll.ErrNone, agent.Stops, "never enrolled", "approval"},
		"not ours to see": {nil, fs.ErrPermission, agent.Warning, "cannot be read", "root"},
		"damaged":         {nil, errors.New("x509: malformed"), agent.Warning, "malformed", "enrols anew"},
		"expired":         {chain(root, gateway, -25*time.Hour, -time.Hour), nil, agent.Stops, "ended", "renews itself"},
		"clock behind":    {chain(root, gateway, time.Hour, 25*time.Hour), nil, agent.Stops, "begins only in", "clock"},
		"overdue":         {chain(root, gateway, -20*time.Hour, 4*time.Hour), nil, agent.Warning, "renewal has been due for 8 h", "steps"},
		"another root":    {chain(newAuthority(t, "Other"), gateway, -time.Hour, time.Hour), nil, agent.Stops, "chain does not end in a root of the kit", "kit"},
		"another domain":  {chain(root, "spiffe://other.test/gateway/bed-7", -time.Hour, time.Hour), nil, agent.Stops, "the kit of ward.test", "hospital"},
		"no gateway":      {chain(root, "spiffe://ward.test/operator/eve", -time.Hour, time.Hour), nil, agent.Stops, "names no gateway", "identity.pem"},
	} {
		got := judgeCertificate(c.chain, c.err, kit, time.Now()) // their times are of before, in whole seconds
		if len(got) != 1 {
			t.Fatalf("%s: %+v", name, got)
		}
		says(t, name, got[0], c.level, c.found, c.mend)
	}
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	kept := agent.KernelClock{Synchronised: true, MaxError: 3 * time.Millisecond}
	server := func(d time.Duration) []offset { return []offset{{"a:1", 0}, {"b:1", d}} }
	for name, c := range map[string]struct {
		now       time.Time
		kernel    agent.KernelClock
		servers   []offset
		connected bool
		level     agent.Level
		found     string
	}{
		"well":              {now, kept, nil, false, agent.Well, "within 3ms"},
		"agrees":            {now, kept, server(2 * time.Second), true, agent.Well, "agrees with b:1"},
		"1970":              {time.Unix(100, 0), kept, nil, false, agent.Stops, "1970-01-01"},
		"1970 but trusted":  {time.Unix(100, 0), kept, nil, true, agent.Warning, "1970-01-01"},
		"a month ahead":     {now, kept, server(-30 * 24 * time.Hour), false, agent.Stops, "30 d ahead of the clock of b:1"},
		"two hours behind":  {now, kept, server(2 * time.Hour), false, agent.Stops, "2 h behind the clock of b:1"},
		"a minute off":      {now, kept, server(time.Minute), false, agent.Warning, "1 min behind"},
		"nobody keeps it":   {now, agent.KernelClock{}, nil, true, agent.Warning, "nothing keeps it"},
		"not kept, but fit": {now, agent.KernelClock{}, server(0), true, agent.Well, "agrees with b:1, although"},
	} {
		says(t, name, judgeClock(c.now, c.kernel, now.Add(-24*time.Hour), c.servers, c.connected), c.level, c.found, "")
	}
}

// One server that works makes the others' failures warnings; none makes them what they are.
func TestServersTogether(t *testing.T) {
	root := newAuthority(t, "Ward Root")
	kit := kitOf(t, root, "a:1", "b:1")
	dead := []reach{{server: "a:1", nameErr: errors.New("no such host")}, {server: "b:1", nameErr: errors.New("no such host")}}
	if got := judgeServers(dead, patient{}, kit, time.Now()); len(got) != 2 || got[0].Level != agent.Stops || got[1].Level != agent.Stops {
		t.Errorf("none works: %+v", got)
	}
	connected := patient{status: &agent.Status{}}
	connected.status.Uplink.Connected = true
	if got := judgeServers(dead, connected, kit, time.Now()); agent.Worst(got) != agent.Warning {
		t.Errorf("the agent is connected: %+v", got)
	}
}

// laptop is a state directory in which an agent once ran.
func laptop(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	for _, d := range []string{"identity", "buffer"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "identity", "device.key"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestStateFiles(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		spoil       func(dir string)
		level       agent.Level
		found, mend string
	}{
		"well":         {func(string) {}, agent.Well, "belong to user", ""},
		"open":         {func(d string) { must(os.Chmod(d, 0o755)) }, agent.Warning, "open to others (mode 0755)", "chmod 700"},
		"read-only":    {func(d string) { must(os.Chmod(filepath.Join(d, "identity", "device.key"), 0o400)) }, agent.Stops, "device.key", "chmod -R u+rwX"},
		"missing":      {func(d string) { must(os.RemoveAll(d)) }, agent.Warning, "does not exist yet", "first start"},
		"no directory": {func(d string) { must(os.RemoveAll(d)); must(os.WriteFile(d, nil, 0o600)) }, agent.Stops, "is no directory", "state:"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := laptop(t)
			c.spoil(dir)
			got := judgeState(dir)
			if len(got) != 1 {
				t.Fatalf("%+v", got)
			}
			says(t, name, got[0], c.level, c.found, c.mend)
		})
	}
}

// Files of another user than the directory's, as a run of the agent by root leaves them.
func TestForeignFiles(t *testing.T) {
	dir := laptop(t)
	me := uint32(os.Geteuid())
	if got := judgeFiles(dir, me); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	got := judgeFiles(dir, me+1)
	if len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	says(t, "foreign", got[0], agent.Stops, "itself: 4 files", "chown -R")
}

// gatewayAt writes a configuration and a kit, and gives the configuration's path.
func gatewayAt(t *testing.T, kit enroll.Kit, extra string) (config, state string) {
	t.Helper()
	dir := t.TempDir()
	data, err := kit.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	config, state = filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "state")
	text := fmt.Sprintf("kit: %s\nstate: %s\ntpm: /nowhere/tpmrm0\n%s", filepath.Join(dir, "kit.json"), state, extra)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "kit.json"), data, 0o644), os.WriteFile(config, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return config, state
}

func find(t *testing.T, r Report, area, name string) agent.Finding {
	t.Helper()
	for _, f := range r.Findings {
		if f.Area == area && f.Name == name {
			return f
		}
	}
	t.Fatalf("nothing about %s %s: %+v", area, name, r.Findings)
	return agent.Finding{}
}

// A gateway at rest, nothing of which is there: everything is said at once, in time.
func TestGatewayAtRest(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	silent := listen(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1<<16)); time.Sleep(Time) }) // takes the handshake and never answers
	kit := kitOf(t, newAuthority(t, "Ward Root"), silent)
	config, _ := gatewayAt(t, kit, fmt.Sprintf("sources: [{id: bed-7, mllp: %q}, {id: bed-8, mllp: '127.0.0.1:0'}]\n", busy.Addr()))
	began := time.Now()
	r := Examine(context.Background(), config)
	if took := time.Since(began); took > Time+5*time.Second {
		t.Errorf("it took %s", took)
	}
	if r.Level != agent.Stops {
		t.Errorf("%+v", r)
	}
	says(t, "agent", find(t, r, AreaAgent, ""), agent.Stops, "does not run", "systemctl start")
	says(t, "TPM", find(t, r, agent.AreaTPM, ""), agent.Stops, "/nowhere/tpmrm0", "enable the TPM")
	says(t, "certificate", find(t, r, AreaCertificate, ""), agent.Stops, "never enrolled", "approval")
	says(t, "port", find(t, r, agent.AreaSource, "bed-7"), agent.Stops, fmt.Sprintf("(process %d)", os.Getpid()), "do not depend on it")
	says(t, "free port", find(t, r, agent.AreaSource, "bed-8"), agent.Well, "is free", "")
	says(t, "buffer", find(t, r, agent.AreaBuffer, ""), agent.Well, "none yet", "")
	says(t, "files", find(t, r, AreaFiles, ""), agent.Warning, "does not exist yet", "")
}

// TestWhoMayNotAskIsTold: an ordinary user cannot see whether an agent runs. What looks as it does while one runs is no fault to him.
func TestWhoMayNotAskIsTold(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	config, _ := gatewayAt(t, kitOf(t, newAuthority(t, "Ward Root"), "127.0.0.1:1"), fmt.Sprintf("sources: [{id: bed-7, mllp: %q}]\n", busy.Addr()))
	cfg, err := agent.LoadConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	way, err := cfg.Way()
	if err != nil {
		t.Fatal(err)
	}
	held, err := cfg.LoadKit()
	if err != nil {
		t.Fatal(err)
	}
	p := look(t.Context(), cfg, way, held.Kit, nil, fmt.Errorf("status: %w", fs.ErrPermission))
	r := Report{Findings: slices.Concat(p.agent, p.tpm, p.inside)}
	says(t, "agent", find(t, r, AreaAgent, ""), agent.Warning, "permission denied", "as root")
	says(t, "TPM", find(t, r, agent.AreaTPM, ""), agent.Warning, "/nowhere/tpmrm0", "as root")
	says(t, "port", find(t, r, agent.AreaSource, "bed-7"), agent.Warning, "is taken: by the agent, or by another program", "as root")
}

// An agent that hangs is waited for once: time is left to look at the servers.
func TestAgentThatHangs(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "Ward Root")
	server := web(t, &tls.Config{Certificates: []tls.Certificate{root.issue(ingest, -time.Hour, time.Hour)}, NextProtos: []string{"http/1.1"}}, time.Now())
	config, state := gatewayAt(t, kitOf(t, root, server), "sources: [{id: bed-7, mllp: '127.0.0.1:0'}]\n")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	hung, err := net.Listen("unix", filepath.Join(state, "agent.sock")) // the kernel takes connections, and nobody ever answers
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	r := Examine(context.Background(), config)
	says(t, "agent", find(t, r, AreaAgent, ""), agent.Stops, "does not run", "systemctl start")
	for _, f := range r.Findings {
		if f.Area == AreaServer && f.Level == agent.Stops {
			t.Errorf("%+v", f)
		}
	}
	find(t, r, AreaServer, server)
}

func TestWithoutConfigurationOrKit(t *testing.T) {
	r := Examine(context.Background(), filepath.Join(t.TempDir(), "agent.yaml"))
	if len(r.Findings) != 1 {
		t.Errorf("%+v", r)
	}
	says(t, "no configuration", find(t, r, AreaConfiguration, ""), agent.Stops, "agent.yaml", "does not start")

	config, _ := gatewayAt(t, kitOf(t, newAuthority(t, "Ward Root"), "127.0.0.1:1"), "sources: [{id: bed-7, mllp: '127.0.0.1:0'}]\n")
	kit := filepath.Join(filepath.Dir(config), "kit.json")
	if err := os.Chmod(kit, 0o666); err != nil {
		t.Fatal(err)
	}
	says(t, "open kit", findLevel(t, Examine(context.Background(), config), AreaKit, agent.Warning), agent.Warning, "can be changed by others", "chmod go-w")
	if err := os.WriteFile(kit, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	says(t, "no kit", find(t, Examine(context.Background(), config), AreaKit, ""), agent.Stops, "kit.json", "does not start")
}

func findLevel(t *testing.T, r Report, area string, level agent.Level) agent.Finding {
	t.Helper()
	for _, f := range r.Findings {
		if f.Area == area && f.Level == level {
			return f
		}
	}
	t.Fatalf("no %s about %s: %+v", level, area, r.Findings)
	return agent.Finding{}
}

// An enrolled gateway whose buffer is gone has lost data: that is no fresh start.
func TestBufferGone(t *testing.T) {
	root := newAuthority(t, "Ward Root")
	config, state := gatewayAt(t, kitOf(t, root, "127.0.0.1:1"), "sources: [{id: bed-7, mllp: '127.0.0.1:0'}]\n")
	dir := filepath.Join(state, "identity")
	leaf := root.issue("spiffe://ward.test/gateway/bed-7", -time.Hour, time.Hour).Leaf
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "identity.pem"), text, 0o644)); err != nil {
		t.Fatal(err)
	}
	r := Examine(context.Background(), config)
	says(t, "buffer", find(t, r, agent.AreaBuffer, ""), agent.Stops, "it is gone", "bring it back")
	says(t, "certificate", find(t, r, AreaCertificate, ""), agent.Well, "spiffe://ward.test/gateway/bed-7", "")
}
