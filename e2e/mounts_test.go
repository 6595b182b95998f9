package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"wardlink/internal/mounttest"
)

// inOwnMounts is mounttest.Inside, which must not build the programs again.
func inOwnMounts(t *testing.T) bool {
	t.Helper()
	return mounttest.Inside(t, ownPrograms+"="+bin)
}

// disk is a small disk under a directory that had something in it.
type disk struct{ *mounttest.Disk }

func (d disk) fill() { d.Fill() }
func (d disk) free() { d.Free() }

// mount puts a disk of a size such as "32m" at dir, with what was in it.
func mount(t *testing.T, dir, size string) disk {
	t.Helper()
	former := dir + ".former"
	if err := os.Rename(dir, former); err != nil {
		t.Fatal(err)
	}
	d := mounttest.Mount(t, dir, size)
	if err := os.CopyFS(dir, os.DirFS(former)); err != nil {
		t.Fatal(err)
	}
	// CopyFS gives modes of its own; keys must be their owner's alone.
	if err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		return os.Chmod(path, 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	return disk{d}
}
