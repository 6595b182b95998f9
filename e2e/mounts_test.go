package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"wardlink/internal/mounttest"
)

// mount puts a disk of a size such as "32m" at dir, with what was in it.
func mount(t *testing.T, dir, size string) *mounttest.Disk {
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
	return d
}
