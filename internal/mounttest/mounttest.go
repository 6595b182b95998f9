// Package mounttest gives a test small disks of its own, so that what a full or a read-only disk does is tested on one.
package mounttest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const inside = "WARDLINK_TEST_OWN_MOUNTS"

// Inside runs the calling test once more in a process with a mount table of its own, so that it may mount small disks (and make networks)
// as anybody and leaves none behind however it ends. It reports true in that process; in the first one the test is over when it returns. env is added
// to the second process's environment.
func Inside(t *testing.T, env ...string) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(append(os.Environ(), inside+"="+t.Name()), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL} // its mounts are its own
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("\n%s", out)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		t.Fail()
	case err != nil:
		t.Fatalf("%v; this test mounts small disks: it needs root, or a kernel that gives everybody a user namespace (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)", err)
	}
	return false
}

// Disk is a small disk at a directory.
type Disk struct {
	t      *testing.T
	dir    string
	filler *os.File
}

// Mount puts an empty disk of a size such as "32m" at dir, which it makes.
func Mount(t *testing.T, dir, size string) *Disk {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=700"); err != nil {
		t.Fatalf("mount a disk of %s: %v", size, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return &Disk{t: t, dir: dir}
}

// Fill leaves no free byte. It may be called again when something else has given bytes back.
func (d *Disk) Fill() {
	d.t.Helper()
	f, err := os.OpenFile(filepath.Join(d.dir, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	if d.filler != nil {
		d.filler.Close()
	}
	d.filler = f
	for _, block := range [][]byte{make([]byte, 1<<20), make([]byte, 4096), make([]byte, 1)} {
		for {
			if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
				break
			} else if err != nil {
				d.t.Fatal(err)
			}
		}
	}
}

// Free gives back what Fill took.
func (d *Disk) Free() {
	d.t.Helper()
	if err := errors.Join(d.filler.Truncate(0), d.filler.Close()); err != nil {
		d.t.Fatal(err)
	}
}

// ReadOnly makes the disk one that cannot be written. Nothing may be open for writing on it.
func (d *Disk) ReadOnly() {
	d.t.Helper()
	if err := unix.Mount("", d.dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		d.t.Fatal(err)
	}
}

// Closed makes the disk one that takes no new files until Opened, as a file system that was remounted read only does; files that are open
// for writing stay so.
func (d *Disk) Closed() {
	d.t.Helper()
	if err := unix.Mount(d.dir, d.dir, "", unix.MS_BIND, ""); err != nil {
		d.t.Fatal(err)
	}
	if err := unix.Mount("", d.dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		d.t.Fatal(err)
	}
}

// Opened ends what Closed began.
func (d *Disk) Opened() {
	d.t.Helper()
	if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
		d.t.Fatal(err)
	}
}

// Unreserve takes back the blocks that a file holds and nobody has written, as a file system that copies on write does in effect: a write
// into the file then needs room on the disk.
func Unreserve(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	zero, buf := [page]byte{}, [page]byte{}
	for at := int64(0); at+page <= info.Size(); at += page {
		if _, err := f.ReadAt(buf[:], at); err != nil {
			t.Fatal(err)
		}
		if buf == zero {
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, page); err != nil {
				t.Fatal(err)
			}
		}
	}
}
