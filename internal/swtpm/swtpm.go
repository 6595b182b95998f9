// Package swtpm makes and starts software TPMs for the demonstration and for tests. A gateway in the field has a real one.
package swtpm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"wardlink/internal/child"
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
	Child  *child.Process
}

// Start runs the TPM of a state directory. Its sockets are in sockets, whose path must be short (108 bytes are the limit).
func Start(ctx context.Context, state, sockets string) (*Process, error) {
	if err := os.MkdirAll(sockets, 0o700); err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	p := &Process{Socket: filepath.Join(sockets, "s")}
	if len(p.Socket) > 107 {
		return nil, fmt.Errorf("swtpm: %s is too long for a Unix socket (108 bytes); set TMPDIR to a short folder, such as /tmp", p.Socket)
	}
	ctrl := filepath.Join(sockets, "c")
	for _, s := range []string{p.Socket, ctrl} {
		if err := os.Remove(s); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("swtpm: %w", err)
		}
	}
	var err error
	p.Child, err = child.Start("TPM at "+p.Socket, filepath.Join(sockets, "log"), "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--server", "type=unixio,path="+p.Socket, "--ctrl", "type=unixio,path="+ctrl, "--flags", "not-need-init,startup-clear")
	if err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err = child.Until(ctx, "swtpm to listen on "+p.Socket, []*child.Process{p.Child}, func(context.Context) (bool, error) {
		conn, err := net.Dial("unix", p.Socket) // the socket appears when swtpm is ready; nothing tells when
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	if err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

// Stop ends the TPM as a power cut does, which a TPM must stand; its state stays.
func (p *Process) Stop() { p.Child.Kill() }
