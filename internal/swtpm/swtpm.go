// Package swtpm makes and starts software TPMs for the demonstration and for tests. A gateway in the field has a real one.
package swtpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Factory manufactures TPMs, with EK certificates by a local CA of its own.
type Factory struct {
	dir string
}

// NewFactory prepares a directory. Nothing outside it is touched, /var included.
func NewFactory(dir string) (*Factory, error) {
	for _, tool := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%s is missing: install the packages swtpm and swtpm-tools (Debian, Ubuntu: apt-get install swtpm swtpm-tools)", tool)
		}
	}
	f := &Factory{dir: dir}
	if err := os.MkdirAll(f.CA(), 0o700); err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	tool, err := exec.LookPath("swtpm_localca")
	if err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	ca := f.CA()
	for name, text := range map[string]string{
		"setup.conf": "create_certs_tool= " + tool + "\ncreate_certs_tool_config = " + filepath.Join(dir, "localca.conf") +
			"\ncreate_certs_tool_options = " + filepath.Join(dir, "localca.options") + "\nactive_pcr_banks = sha256\n",
		"localca.conf": "statedir = " + ca + "\nsigningkey = " + filepath.Join(ca, "signkey.pem") + "\nissuercert = " +
			filepath.Join(ca, "issuercert.pem") + "\ncertserial = " + filepath.Join(ca, "certserial") + "\n",
		"localca.options": "--platform-manufacturer Example\n--platform-version 1.0\n--platform-model EdgeGW\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("swtpm: %w", err)
		}
	}
	return f, nil
}

// CA is the directory of the maker's certificates: swtpm-localca-rootca-cert.pem and issuercert.pem, once one TPM was made.
func (f *Factory) CA() string { return filepath.Join(f.dir, "ca") }

// Certificates are the files of the maker's root and intermediate.
func (f *Factory) Certificates() []string {
	return []string{filepath.Join(f.CA(), "swtpm-localca-rootca-cert.pem"), filepath.Join(f.CA(), "issuercert.pem")}
}

// Make manufactures one TPM into the directory state. It takes some seconds; a copy of the directory is the same TPM.
func (f *Factory) Make(ctx context.Context, state string) error {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return fmt.Errorf("swtpm: %w", err)
	}
	args := []string{"--tpm2", "--tpmstate", state, "--config", filepath.Join(f.dir, "setup.conf"),
		"--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--overwrite"}
	if os.Getuid() == 0 { // else it drops to the user tss, which cannot enter a directory of root
		args = append(args, "--runas", "root")
	}
	if out, err := exec.CommandContext(ctx, "swtpm_setup", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("swtpm_setup: %w\n%s", err, out)
	}
	return nil
}

// Process is a running TPM.
type Process struct {
	Socket string
	cmd    *exec.Cmd
}

// Start runs the TPM of a state directory. Its sockets are in sockets, whose path must be short (108 bytes are the limit).
func Start(ctx context.Context, state, sockets string) (*Process, error) {
	if err := os.MkdirAll(sockets, 0o700); err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	p := &Process{Socket: filepath.Join(sockets, "s")}
	ctrl := filepath.Join(sockets, "c")
	for _, s := range []string{p.Socket, ctrl} {
		if err := os.Remove(s); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("swtpm: %w", err)
		}
	}
	var log bytes.Buffer
	p.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--server", "type=unixio,path="+p.Socket, "--ctrl", "type=unixio,path="+ctrl, "--flags", "not-need-init,startup-clear")
	p.cmd.Stderr = &log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	tick := time.NewTicker(5 * time.Millisecond) // the socket appears when swtpm is ready; nothing tells when
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		conn, err := net.Dial("unix", p.Socket)
		if err == nil {
			return p, conn.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.Stop()
			return nil, fmt.Errorf("swtpm does not listen on %s: %w\n%s", p.Socket, err, log.Bytes())
		}
	}
}

// Stop ends the TPM; its state stays.
func (p *Process) Stop() {
	_ = p.cmd.Process.Kill() // a TPM must stand a power cut
	_ = p.cmd.Wait()
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }
