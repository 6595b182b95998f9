package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"wardlink/internal/child"
	"wardlink/server/api/client"
	"wardlink/server/keys"
)

// startServer makes a hospital's server and runs it.
func (t *theatre) startServer(ctx context.Context) error {
	t.stages.begin("server")
	var err error
	for _, addr := range []*string{&t.ports.gateways, &t.ports.hospital, &t.ports.operators} {
		if *addr, err = t.doors.Free(); err != nil {
			return err
		}
	}
	args := []string{"init", "--dir", t.server, "--trust-domain", trustDomain, "--name", "localhost", "--name", "127.0.0.1",
		"--gateways", t.ports.gateways, "--hospital", t.ports.hospital, "--operators", t.ports.operators}
	database, err := t.makeDatabase(ctx)
	if err != nil {
		return err
	}
	args = append(args, database...)
	for _, c := range t.fleet[0].factory.Certificates() {
		args = append(args, "--ek-trust", c)
	}
	if t.Disaster {
		if err := os.WriteFile(t.passphrase(), []byte(keys.NewPassphrase()+"\n"), 0o600); err != nil {
			return err
		}
		args = append(args, "--passphrase-file", t.passphrase())
	}
	if _, err := child.Output(ctx, t.bin("wardlink-server"), args...); err != nil {
		return err
	}
	if err := t.runServer(); err != nil {
		return err
	}
	if t.api, err = client.Open(t.operator()); err != nil {
		return err
	}
	if err := t.serverReady(ctx); err != nil {
		return err
	}
	wire, err := t.doors.Free()
	if err != nil {
		return err
	}
	if t.front, err = t.startNodes(ctx); err != nil {
		return err
	}
	if t.network, err = newNetwork(wire, t.front); err != nil {
		return err
	}
	t.stages.done("gateways %s%s, hospital %s, operators %s", t.front, t.behind(), t.ports.hospital, t.ports.operators)
	return nil
}

// register enters the gateways into the registry by their TPMs' endorsement keys, as an operator would.
func (t *theatre) register(ctx context.Context) error {
	t.stages.begin("registry")
	kit := filepath.Join(t.dir, "kit.json")
	operator := []string{"--operator", t.operator()}
	run := func(args ...string) error {
		_, err := child.Output(ctx, t.bin("wardlink"), append(slices.Clone(operator), args...)...)
		return err
	}
	if err := run("provision", "kit", "--server", t.network.address(), "--out", kit); err != nil {
		return err
	}
	if t.bootsOthers() {
		if err := run("boot", "policy", "learn", "--after", "1"); err != nil {
			return err
		}
	}
	csv := "id,ek_sha256,site,ward,profile\n"
	for _, g := range t.boxes() {
		if err := g.configure(kit, t.Former); err != nil {
			return err
		}
		if t.inOneGo() && g != t.mallory {
			continue
		}
		ek, err := g.identity(ctx, t.bin("wardlink-agent"))
		if err != nil {
			return err
		}
		csv += fmt.Sprintf("%s,%x,demo,%s,default\n", g.name, ek, g.ward)
		if g == t.mallory {
			t.malloryEK = ek
		}
	}
	entered := "none of " + plural(len(t.boxes()), "gateway") + " is entered; the kit is on each"
	if !t.inOneGo() {
		entered = plural(len(t.boxes()), "gateway") + " by endorsement key"
		manifest := filepath.Join(t.dir, "gateways.csv")
		if err := os.WriteFile(manifest, []byte(csv), 0o600); err != nil {
			return err
		}
		if err := run("gateway", "import", manifest); err != nil {
			return err
		}
	}
	if err := run("access", "issue", readerName, "--all", "--out", filepath.Join(t.dir, "reader")); err != nil {
		return err
	}
	t.stages.done("%s; FHIR account %q", entered, readerName)
	return nil
}

// startAgents runs the agents and waits until each has enrolled with its TPM and is connected.
func (t *theatre) startAgents(ctx context.Context) error {
	t.stages.begin("enrolment")
	boxes := t.boxes()
	begun := 0
	connected := make(map[*gateway]bool)
	ambush := t.planAmbush(len(boxes))
	var ambushes errgroup.Group
	ctx, cancel := context.WithCancel(ctx)
	defer func() { cancel(); _ = ambushes.Wait() }() // none must start a process that nobody stops
	for len(connected) < len(boxes) {
		for ; begun < len(boxes) && begun-len(connected) < starting; begun++ {
			g := boxes[begun]
			if err := g.startAgent(t.bin("wardlink-agent")); err != nil {
				return err
			}
			if ambush != nil {
				after := ambush.agents[begun]
				ambushes.Go(func() error { return t.ambushAgent(ctx, g, after) })
				if begun == 0 {
					ambushes.Go(func() error { return t.ambushServer(ctx, ambush.server) })
				}
			}
		}
		before := len(connected)
		err := child.Until(ctx, "enrolment", t.running(), func(ctx context.Context) (bool, error) {
			for _, g := range boxes[:begun] {
				if connected[g] {
					continue
				}
				if s, err := g.status(ctx); err == nil && s.Uplink.Connected {
					connected[g] = true
				}
			}
			t.stages.progress("%d of %d connected", len(connected), len(boxes))
			return len(connected) > before, nil
		})
		if err != nil {
			return err
		}
	}
	if err := ambushes.Wait(); err != nil {
		return err
	}
	t.stages.done("%s by TPM credential activation and ACME device-attest-01", plural(len(boxes), "certificate"))
	return nil
}
