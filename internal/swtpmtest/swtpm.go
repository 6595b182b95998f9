// Package swtpmtest makes and starts software TPMs for tests. A test that cannot have one fails: it never skips.
package swtpmtest

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// factory manufactures one TPM per test process and keeps its state to copy from: manufacturing takes seconds, copying none.
var factory struct {
	sync.Mutex
	dir string // one per process, removed by the operating system's temp cleaner if the process is killed
	n   int
}

// Identity is a manufactured TPM: copies of its state are the same TPM with the same EK.
type Identity struct {
	state string
	CA    string // directory of the maker's CA: swtpm-localca-rootca-cert.pem and issuercert.pem
}

// TPM is a running swtpm.
type TPM struct {
	Path   string // for tpm.Open: "swtpm:..."
	Socket string
	State  string // its state directory
	cmd    *exec.Cmd
	args   []string
	t      testing.TB
}

// Main runs a package's tests and removes the factory afterwards. Call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	factory.Lock()
	if factory.dir != "" {
		os.RemoveAll(factory.dir)
	}
	factory.Unlock()
	os.Exit(code)
}

var shared struct {
	sync.Mutex
	id *Identity
}

// Shared is the one identity of this test process, manufactured at its first use.
func Shared(t testing.TB) *Identity {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.id == nil {
		shared.id = Manufacture(t)
	}
	return shared.id
}

// Manufacture makes a TPM of its own, with EKs and EK certificates by a local CA that all identities of this process share.
func Manufacture(t testing.TB) *Identity {
	t.Helper()
	for _, tool := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing; install the packages swtpm and swtpm-tools (make test does)", tool)
		}
	}
	factory.Lock()
	defer factory.Unlock()
	if factory.dir == "" {
		dir, err := os.MkdirTemp("", "wl-swtpm-")
		if err != nil {
			t.Fatal(err)
		}
		factory.dir = dir
	}
	factory.n++
	id := &Identity{state: filepath.Join(factory.dir, fmt.Sprint("state", factory.n)), CA: filepath.Join(factory.dir, "ca")}
	for _, dir := range []string{id.state, id.CA} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	setup := writeConfig(t, factory.dir, id.CA)
	args := []string{"--tpm2", "--tpmstate", id.state, "--config", setup, "--create-ek-cert", "--create-platform-cert",
		"--lock-nvram", "--overwrite"}
	if os.Getuid() == 0 { // swtpm_setup would drop to the user tss, which cannot enter a directory of root
		args = append(args, "--runas", "root")
	}
	if out, err := exec.Command("swtpm_setup", args...).CombinedOutput(); err != nil {
		t.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
	return id
}

// writeConfig keeps swtpm_setup and its CA away from /var.
func writeConfig(t testing.TB, dir, ca string) string {
	t.Helper()
	tool, err := exec.LookPath("swtpm_localca")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"setup.conf": "create_certs_tool= " + tool + "\ncreate_certs_tool_config = " + filepath.Join(dir, "localca.conf") +
			"\ncreate_certs_tool_options = " + filepath.Join(dir, "localca.options") + "\nactive_pcr_banks = sha256\n",
		"localca.conf": "statedir = " + ca + "\nsigningkey = " + filepath.Join(ca, "signkey.pem") + "\nissuercert = " +
			filepath.Join(ca, "issuercert.pem") + "\ncertserial = " + filepath.Join(ca, "certserial") + "\n",
		"localca.options": "--platform-manufacturer Example\n--platform-version 1.0\n--platform-model EdgeGW\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "setup.conf")
}

// Start runs a copy of the identity: the same TPM, with whatever is done to it kept apart. It stops with the test.
func (id *Identity) Start(t testing.TB) *TPM {
	t.Helper()
	// Socket paths are limited to 108 bytes, which t.TempDir of a long test name exceeds.
	dir, err := os.MkdirTemp("", "wl-tpm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &TPM{t: t, State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s")}
	s.Path = "swtpm:" + s.Socket
	if err := os.CopyFS(s.State, os.DirFS(id.state)); err != nil {
		t.Fatal(err)
	}
	s.args = []string{"socket", "--tpm2", "--tpmstate", "dir=" + s.State, "--server", "type=unixio,path=" + s.Socket,
		"--ctrl", "type=unixio,path=" + filepath.Join(dir, "c"), "--flags", "not-need-init,startup-clear"}
	s.run()
	t.Cleanup(s.Stop)
	return s
}

// Start starts a copy of the process's shared identity.
func Start(t testing.TB) *TPM {
	t.Helper()
	return Shared(t).Start(t)
}

// Stop ends the TPM; its state stays.
func (s *TPM) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(5*time.Second, func() { _ = s.cmd.Process.Kill() })
	_ = s.cmd.Wait() // its exit code says only which signal it was
	kill.Stop()
	s.cmd = nil
	for _, name := range []string{"s", "c"} {
		os.Remove(filepath.Join(filepath.Dir(s.Socket), name))
	}
}

// Restart powers the TPM off and on: transient objects and sessions are gone, the rest stays.
func (s *TPM) Restart() {
	s.t.Helper()
	s.Stop()
	s.run()
}

func (s *TPM) run() {
	s.t.Helper()
	var log strings.Builder
	s.cmd = exec.Command("swtpm", s.args...)
	s.cmd.Stderr = &log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("start swtpm: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := net.Dial("unix", s.Socket)
		if err == nil {
			conn.Close()
			return
		}
		if !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "refused") || time.Now().After(deadline) {
			s.t.Fatalf("swtpm does not listen on %s: %v", s.Socket, err)
		}
		<-time.After(5 * time.Millisecond) // the socket appears when swtpm is ready; nothing tells when
	}
}
