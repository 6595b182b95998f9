package e2e

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestInterruptedDemoLeavesNothing: Ctrl-C, whenever it comes, ends every process and removes every file. While the demonstration
// plays it is a failure that is said in one line; with --keep it is how one leaves.
func TestInterruptedDemoLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, after string // interrupted once a line holds this
		args        []string
		code        int
		said        string
	}{
		{"while TPMs are made", "", []string{"--gateways", "3"}, 1, "interrupted"},
		{"while agents enrol", "registry", nil, 1, "interrupted"},
		{"while monitors send, amid chaos", "SIGKILL to the server", []string{"--chaos", "10"}, 1, "interrupted"},
		{"kept", "until you press Ctrl-C", []string{"--keep", "--minutes", "1"}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tmp := folder(t)
			cmd := exec.Command(program("wardlink"), append([]string{"demo"}, c.args...)...)
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "NO_COLOR=1")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			late := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
			defer late.Stop()
			if c.after == "" {
				awaitEntry(t, filepath.Join(tmp, "wl*", "tpm"))
				_ = cmd.Process.Signal(syscall.SIGINT)
			}
			seen := c.after == ""
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if !seen && strings.Contains(lines.Text(), c.after) {
					seen = true
					_ = cmd.Process.Signal(syscall.SIGINT)
				}
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); !seen || code != c.code || !strings.Contains(stderr.String(), c.said) {
				t.Errorf("line %q seen: %t; exit code %d, expected %d; said %q", c.after, seen, code, c.code, stderr.String())
			}
			if left, err := filepath.Glob(filepath.Join(tmp, "*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
			if left := running(t, tmp); len(left) > 0 {
				t.Errorf("still running: %q", left)
			}
		})
	}
}

// awaitEntry waits until something is there.
func awaitEntry(t *testing.T, pattern string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing at %s", pattern)
		}
	}
}

// running are the command lines of processes that name the folder.
func running(t *testing.T, dir string) (lines []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Fatalf("no processes can be listed: %v", err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil && bytes.Contains(data, []byte(dir)) {
			lines = append(lines, strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return lines
}
