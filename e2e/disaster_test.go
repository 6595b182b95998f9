package e2e

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/demo"
)

// TestDisaster loses the server's whole directory, with an old backup and the gateways as all that is left.
func TestDisaster(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	var out bytes.Buffer
	s, err := demo.Run(ctx, demo.Options{Disaster: true, Minutes: 2, Bin: bin, Out: &out, Plain: true})
	t.Log("\n" + out.String())
	if err != nil {
		t.Fatal(err)
	}
	if d := s.Disaster; !s.OK() || d == nil || d.Brought < 10 || d.Gone != 0 || !d.Succession || s.SamplesStored != s.SamplesSent || s.AgentKills != 1 {
		t.Errorf("%+v, %+v", s, d)
	}
}

// TestKilledBackupAndRestore kills both at instants spread over what they take. A backup that has its name is whole; what a killed restore
// leaves either is whole or is refused by everything.
func TestKilledBackupAndRestore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server, pass := filepath.Join(dir, "server"), filepath.Join(dir, "passphrase")
	if err := os.WriteFile(pass, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must := func(args ...string) time.Duration {
		t.Helper()
		begun := time.Now()
		if out, err := exec.Command(program("wardlink-server"), args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return time.Since(begun)
	}
	killed := func(after time.Duration, args ...string) {
		t.Helper()
		cmd := exec.Command(program("wardlink-server"), args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
	}
	restore := func(to, from string) []string {
		return []string{"restore", "--dir", to, "--from", from, "--verify", "--passphrase-file", pass}
	}
	must("init", "--dir", server, "--name", "localhost", "--passphrase-file", pass)
	whole := filepath.Join(dir, "whole")
	takes := must("backup", "--dir", server, "--out", whole)
	const kills = 8
	for i := range kills {
		out := filepath.Join(t.TempDir(), "backup")
		killed(takes*time.Duration(i)/kills, "backup", "--dir", server, "--out", out)
		if _, err := os.Stat(out); err == nil {
			must(restore(filepath.Join(t.TempDir(), "restored"), out)...)
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	must("backup", "--dir", server, "--out", filepath.Join(dir, "after")) // what a killed one left is in nobody's way
	if left, err := os.ReadDir(filepath.Join(server, ".backup")); err != nil || len(left) != 1 {
		t.Errorf("left over in the server's directory: %v, %v", left, err)
	}

	takes = must(restore(filepath.Join(dir, "restored"), whole)...)
	refused := 0
	for i := range kills {
		to := filepath.Join(t.TempDir(), "restored")
		killed(takes*time.Duration(i)/kills, restore(to, whole)...)
		out, err := exec.Command(program("wardlink-server"), "operator", "--dir", to, "--name", "jane-doe").CombinedOutput()
		switch {
		case err == nil: // it had come to its end
		case strings.Contains(string(out), "did not come to its end"):
			refused++
			if out, err := exec.Command(program("wardlink-server"), restore(to, whole)...).CombinedOutput(); err == nil || !strings.Contains(string(out), "is not empty") {
				t.Errorf("a restore over what was left: %v\n%s", err, out)
			}
		case strings.Contains(string(out), "is no server's directory"): // not begun
		default:
			t.Errorf("after a kill: %v\n%s", err, out)
		}
	}
	if refused == 0 {
		t.Error("no kill fell into a restore")
	}
}
