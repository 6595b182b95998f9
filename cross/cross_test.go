// Package cross tests the programs that are built for other machines than this one, each on an emulated processor of the oldest kind it
// is meant for.
package cross

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/enroll/enrolltest"
	"wardlink/telemetry/seal"
)

// machines are the targets that this machine's processor does not run by itself, and the processors to emulate for them.
var machines = []struct{ target, platform, emulator, cpu string }{
	{"linux-arm64", "linux/arm64", "qemu-aarch64-static", "cortex-a53"},
	{"linux-armv7", "linux/arm/v7", "qemu-arm-static", "cortex-a7"},
	{"linux-armv6", "linux/arm/v6", "qemu-arm-static", "arm1176"},
	{"linux-riscv64", "linux/riscv64", "qemu-riscv64-static", "rv64"},
}

// TestAgentOnEachMachine builds and runs the agent for the first machine, and for all with WARDLINK_CROSS=all ('make check').
func TestAgentOnEachMachine(t *testing.T) {
	dir := t.TempDir()
	args := []string{dir}
	machines := machines
	if os.Getenv("WARDLINK_CROSS") != "all" {
		machines = machines[:1]
	}
	for _, m := range machines {
		args = append(args, m.target+"/wardlink-agent")
	}
	if out, err := exec.Command("./build", args...).CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, m := range machines {
		t.Run(m.target, func(t *testing.T) {
			t.Parallel()
			agent := func(wantCode int, args ...string) string {
				t.Helper()
				cmd := exec.Command(m.emulator, append([]string{"-cpu", m.cpu, filepath.Join(dir, m.target, "wardlink-agent")}, args...)...)
				var out, errs bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &errs
				var exit *exec.ExitError
				if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
					t.Fatalf("%v: is the package qemu-user-static installed? 'make need' does that", err)
				}
				if code := cmd.ProcessState.ExitCode(); code != wantCode {
					t.Fatalf("%v: exit %d\n%s%s", args, code, out.Bytes(), errs.Bytes())
				}
				return out.String()
			}
			checkVersion(t, agent(0, "version", "--json", "--modules"), m.platform)
			checkDoctor(t, agent(1, "doctor", "--json", "--config", configWithoutTPM(t)))
			checkBench(t, agent(0, "buffer", "bench", "--json", "--count", "600", "--dir", t.TempDir()))
		})
	}
}

func checkVersion(t *testing.T, out, platform string) {
	t.Helper()
	var v struct {
		Platform, Commit string
		Committed        time.Time
		FIPS             string `json:"fips_140_3_module"`
		Modules          map[string]string
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatal(err)
	}
	if v.Platform != platform || !strings.HasPrefix(v.FIPS, "v1.") || len(v.Commit) < 40 || v.Committed.Year() < 2025 || v.Modules["go.etcd.io/bbolt"] == "" {
		t.Errorf("version says %s", out)
	}
}

// A gateway without its TPM keeps what comes, and the doctor names the TPM.
func checkDoctor(t *testing.T, out string) {
	t.Helper()
	var report struct {
		Findings []struct{ Area, Level, Found string }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	areas := map[string]string{}
	for _, f := range report.Findings {
		areas[f.Area+" "+f.Level] += f.Found
	}
	if !strings.Contains(areas["TPM stops"], "/no-such-tpm") || areas["kit well"] == "" || !strings.Contains(areas["server stops"], "connection refused") {
		t.Errorf("doctor says %s", out)
	}
}

// More than one segment is written, and all of it is there.
func checkBench(t *testing.T, out string) {
	t.Helper()
	var m struct {
		Commits  int
		Found    int   `json:"batches_found"`
		Files    int64 `json:"file_bytes"`
		Problems []string
	}
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		t.Fatal(err)
	}
	if m.Commits != 600 || m.Found != 600 || m.Files < 12<<20 || len(m.Problems) > 0 {
		t.Errorf("bench says %s", out)
	}
}

// configWithoutTPM is a configuration with a kit whose server is off, and a TPM that is not there.
func configWithoutTPM(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	records, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := closed.Addr().String()
	_ = closed.Close()
	kit := enrolltest.Kit(t, "ward.test", server, records.Public())
	if err := os.WriteFile(filepath.Join(dir, "kit.json"), kit, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "agent.yaml")
	text := fmt.Sprintf("kit: %[1]s/kit.json\nstate: %[1]s/state\ntpm: %[1]s/no-such-tpm\nsources: [{id: bed-1, mllp: '127.0.0.1:0'}]\n", dir)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
