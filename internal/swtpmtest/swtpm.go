// Package swtpmtest makes and starts software TPMs for tests. A test that cannot have one fails: it never skips.
package swtpmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"wardlink/internal/swtpm"
)

// factory manufactures the TPMs of one test process. Manufacturing takes seconds, so a TPM's state is copied where its identity does
// not matter.
var factory struct {
	sync.Mutex
	maker *swtpm.Factory
	dir   string // removed by Main
	n     int
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
	proc   *swtpm.Process
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
	factory.Lock()
	defer factory.Unlock()
	if factory.maker == nil {
		dir, err := os.MkdirTemp("", "wl-swtpm-")
		if err != nil {
			t.Fatal(err)
		}
		factory.dir = dir
		if factory.maker, err = swtpm.NewFactory(dir); err != nil {
			t.Fatal(err)
		}
	}
	factory.n++
	id := &Identity{state: filepath.Join(factory.dir, fmt.Sprint("state", factory.n)), CA: factory.maker.CA()}
	if err := factory.maker.Make(t.Context(), id.state); err != nil {
		t.Fatal(err)
	}
	return id
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
	s.run()
	t.Cleanup(s.Stop)
	return s
}

// Start starts a copy of the process's shared identity.
func Start(t testing.TB) *TPM {
	t.Helper()
	return Shared(t).Start(t)
}

// Stop ends the TPM as a power cut does; its state stays.
func (s *TPM) Stop() {
	if s.proc == nil {
		return
	}
	s.proc.Stop()
	s.proc = nil
	os.Remove(s.Socket) // nothing listens any more
}

// Clear clears the TPM, as an operator does in a machine's firmware setup.
func (s *TPM) Clear() {
	s.t.Helper()
	if err := swtpm.Clear(s.Socket); err != nil {
		s.t.Fatal(err)
	}
}

// Extend extends a PCR, as firmware does with the hash of what it starts next.
func (s *TPM) Extend(pcr int, digest [32]byte) {
	s.t.Helper()
	if err := swtpm.Extend(s.Socket, pcr, digest); err != nil {
		s.t.Fatal(err)
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
	var err error
	if s.proc, err = swtpm.Start(s.t.Context(), s.State, filepath.Dir(s.Socket)); err != nil {
		s.t.Fatal(err)
	}
}
