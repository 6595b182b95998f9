package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"wardlink/agent"
	"wardlink/buffer"
	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/enroll/verify"
	"wardlink/telemetry/seal"
)

func configFlag(fs *flag.FlagSet) *string {
	return fs.String("config", "", "the agent's configuration `FILE`; without it: agent.yaml in "+strings.Join(agent.ConfigDirs(), ", ")+", else built-in defaults")
}

func runAgent(ctx context.Context, args []string, _, stderr io.Writer) error {
	fs := flags("run", stderr)
	path := configFlag(fs)
	if err := parse(fs, args); err != nil {
		return err
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		return err
	}
	// A core dump would hold the sealing period's key and messages under way.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("core dumps cannot be switched off: %w", err)
	}
	var h slog.Handler = slog.NewTextHandler(stderr, nil)
	if cfg.Log == "json" {
		h = slog.NewJSONHandler(stderr, nil)
	}
	// From here on SIGHUP is a word to the agent and no death; one that comes during the start is heard after it.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	// A gateway has time and little memory: the heap grows to one and a half of what lives, not to two.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	a, err := agent.New(cfg, slog.New(h))
	if err != nil {
		return err
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				a.Reload(func() (agent.Config, error) { return agent.LoadConfig(*path) })
			}
		}
	}()
	return a.Run(ctx)
}

// configCommand checks a configuration as a start or a reload would, and changes nothing.
func configCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flags("config check", stderr)
	path, asJSON := configFlag(fs), fs.Bool("json", false, "print JSON")
	rest, err := parseWith(fs, args, 2)
	if err != nil {
		return err
	}
	if len(rest) == 0 || rest[0] != "check" || len(rest) == 2 && *path != "" {
		return usageError{fmt.Errorf("expected 'config check [FILE]'")}
	}
	if len(rest) == 2 {
		*path = rest[1]
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		return err
	}
	if err := cfg.CheckHere(); err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, map[string]any{"file": cfg.From, "sources": len(cfg.Sources)})
	}
	_, err = fmt.Fprintf(stdout, "%s: good; %s. 'systemctl reload wardlink-agent' has the running agent take it\n", cfg.From, agent.Count(len(cfg.Sources), "source"))
	return err
}

// identityReport is what `identity` prints: enough to enter a gateway into the registry.
type identityReport struct {
	EKSHA256     string `json:"ek_sha256"`
	Fingerprint  string `json:"fingerprint"`
	Certificate  bool   `json:"ek_certificate"` // the TPM holds an EK certificate
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Firmware     string `json:"firmware"`
	Serial       string `json:"serial,omitempty"` // of the box
}

func identity(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flags("identity", stderr)
	path, asJSON := configFlag(fs), fs.Bool("json", false, "print JSON")
	if err := parse(fs, args); err != nil {
		return err
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	dev, err := tpm.Open(ctx, cfg.TPM)
	if err != nil {
		return err
	}
	defer dev.Close()
	info, err := dev.Info(ctx)
	if err != nil {
		return err
	}
	ek, err := dev.EK(ctx)
	if err != nil {
		return err
	}
	r := identityReport{
		EKSHA256: hex.EncodeToString(ek.Hash[:]), Fingerprint: enroll.Fingerprint(ek.Hash), Certificate: ek.Certificate != nil,
		Manufacturer: info.Manufacturer, Model: info.Model, Firmware: info.Firmware,
		Serial: agent.Serial(),
	}
	if *asJSON {
		return printJSON(stdout, r)
	}
	certificate := "none: its maker does not vouch for it"
	if r.Certificate {
		certificate = "from its maker"
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "EK SHA-256\t%s\nfingerprint\t%s\nEK certificate\t%s\nTPM\t%s %s, firmware %s\n",
		r.EKSHA256, r.Fingerprint, certificate, verify.MakerName(r.Manufacturer), strings.Join(strings.Fields(r.Model), " "), r.Firmware)
	if r.Serial != "" {
		fmt.Fprintf(w, "serial number\t%s\n", r.Serial)
	}
	return w.Flush()
}

func bufferCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	switch {
	case len(args) > 0 && isHelp(args[0]):
		return errors.Join(bufferCheck(args[:1], stdout, stderr), bufferBench(ctx, args[:1], stdout, stderr))
	case len(args) > 0 && args[0] == "check":
		return bufferCheck(args[1:], stdout, stderr)
	case len(args) > 0 && args[0] == "bench":
		return bufferBench(ctx, args[1:], stdout, stderr)
	}
	return usageError{fmt.Errorf("expected 'buffer check' or 'buffer bench'")}
}

func bufferCheck(args []string, stdout, stderr io.Writer) error {
	fs := flags("buffer check", stderr)
	path, asJSON := configFlag(fs), fs.Bool("json", false, "print JSON")
	if err := parse(fs, args); err != nil {
		return err
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		return err
	}
	dir := filepath.Join(cfg.State, "buffer")
	report, err := buffer.Check(dir, func(frame []byte) error { _, err := seal.CheckFrame(frame); return err })
	if err != nil {
		return err
	}
	if *asJSON {
		if err := printJSON(stdout, report); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "LANE\tSEGMENTS\tBATCHES\tACKNOWLEDGED\tPARKED\tEVICTED\tLOST")
		for _, l := range report.Lanes {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\n", l.Name, l.Segments, l.Batches, l.Acked, l.Parked, l.Evicted, l.Lost)
		}
		for _, f := range report.Findings {
			fmt.Fprintf(w, "FINDING\t%s: %s\n", f.Path, f.Problem)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(report.Findings) > 0 {
		return fmt.Errorf("buffer %s: %d findings", dir, len(report.Findings))
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false) // it is for a terminal or a script, and HL7 is full of ampersands
	return enc.Encode(v)
}
