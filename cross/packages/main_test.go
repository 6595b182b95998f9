//go:build packages

// Package packages tests the packages as an engineer meets them: installed in a throw-away root, run, upgraded, removed and purged.
// cross/packages/test builds what it needs.
package packages

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain runs the tests in namespaces of their own: mounts end with them, default ports are free, and there is no Internet.
func TestMain(m *testing.M) {
	if os.Getenv("WARDLINK_ISOLATED") != "" {
		if err := loopback(); err != nil {
			fmt.Fprintln(os.Stderr, "loopback:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "WARDLINK_ISOLATED=yes")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "namespaces:", err, "- this test needs root")
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// ward is an address of a private network, as bedside devices have.
const ward = "10.9.8.7"

// loopback switches on the only network there is.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return err
	}
	alias, err := unix.NewIfreq("lo:1")
	if err != nil {
		return err
	}
	if err := alias.SetInet4Addr(net.ParseIP(ward).To4()); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, alias)
}

// packageFile finds the one package of a name and format in the folder that an environment variable names.
func packageFile(t *testing.T, variable, name, format string) string {
	t.Helper()
	dir := os.Getenv(variable)
	if dir == "" {
		t.Fatalf("%s is not set; run 'make packages-test'", variable)
	}
	found, err := filepath.Glob(filepath.Join(dir, name+"?1*."+format))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s in %s: %q, %v; expected one file", name, dir, found, err)
	}
	return found[0]
}

// root is a throw-away Debian.
type root struct {
	*testing.T
	dir string
}

func newRoot(t *testing.T) *root {
	t.Helper()
	r := &root{t, t.TempDir()}
	if out, err := exec.Command("tar", "-C", r.dir, "--numeric-owner", "-xf", os.Getenv("WARDLINK_ROOT")).CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v: %s", err, out)
	}
	if err := syscall.Mount("proc", r.path("/proc"), "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(r.path("/proc"), syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *root) path(elem ...string) string {
	return filepath.Join(append([]string{r.dir}, elem...)...)
}

// command is a program within the root, with nothing of this machine's environment.
func (r *root) command(args ...string) *exec.Cmd {
	cmd := exec.Command("chroot", append([]string{r.dir}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"}
	return cmd
}

// try runs a program within the root.
func (r *root) try(args ...string) (string, error) {
	out, err := r.command(args...).CombinedOutput()
	return string(out), err
}

// must runs a program that must succeed.
func (r *root) must(args ...string) string {
	r.Helper()
	out, err := r.try(args...)
	if err != nil {
		r.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// as runs a program as a user, as sudo -u does.
func (r *root) as(user string, args ...string) string {
	r.Helper()
	return r.must(append([]string{"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups", "--"}, args...)...)
}

// install is apt, of a package file, without the Internet.
func (r *root) install(file string) string {
	r.Helper()
	inside := "/root/" + filepath.Base(file)
	data, err := os.ReadFile(file)
	if err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(r.path(inside), data, 0o644); err != nil {
		r.Fatal(err)
	}
	return r.must("apt-get", "install", "-y", "-q", inside)
}

func (r *root) exists(path string) bool {
	_, err := os.Lstat(r.path(path))
	return err == nil
}

// mode is a file's permissions, owner and group, by the root's own names.
func (r *root) mode(path string) string {
	r.Helper()
	return strings.TrimSpace(r.must("stat", "-c", "%a %U:%G", path))
}
