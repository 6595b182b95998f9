package segment

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"syscall"
	"testing"
)

// cached is a file as a failed write-back leaves it: reads come from the cache, and a flush writes only what was written since.
type cached struct {
	shown, disk []byte
	dirty       []int // pages
}

func (c *cached) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(c.shown).ReadAt(p, at)
}

func (c *cached) WriteAt(p []byte, at int64) (int, error) {
	for page := int(at) / PageSize; page*PageSize < int(at)+len(p); page++ {
		c.dirty = append(c.dirty, page)
	}
	return copy(c.shown[at:], p), nil
}

func (c *cached) Fd() uintptr { return ^uintptr(0) }

// TestHardenWritesWhatTheCacheHolds: both meta pages are clean in the cache and older on disk; a flush alone would change nothing.
func TestHardenWritesWhatTheCacheHolds(t *testing.T) {
	f := made(t)
	if err := put(f, "k", 100); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	c := &cached{shown: raw, disk: make([]byte, len(raw))}
	former := fdatasync
	t.Cleanup(func() { fdatasync = former })
	fdatasync = func(metaFile) error {
		for _, page := range c.dirty {
			copy(c.disk[page*PageSize:][:PageSize], c.shown[page*PageSize:])
		}
		c.dirty = nil
		return nil
	}
	if err := harden(c); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.disk[:2*PageSize], raw[:2*PageSize]) || slices.ContainsFunc(c.disk[2*PageSize:], func(b byte) bool { return b != 0 }) {
		t.Fatal("the disk does not hold both meta pages, and only them")
	}
	fdatasync = func(metaFile) error { return syscall.EIO }
	if err := harden(c); !errors.Is(err, syscall.EIO) {
		t.Fatalf("a failed flush: %v", err)
	}
	if err := harden(&cached{shown: raw[:100]}); !errors.Is(err, ErrDamaged) || errors.Is(err, io.EOF) {
		t.Fatalf("a file without meta pages: %v", err)
	}
}

// TestNoSummaryBeforeTheTailIsDurable: the next start takes what a summary counts for durable, so a file must not get one earlier.
func TestNoSummaryBeforeTheTailIsDurable(t *testing.T) {
	f := made(t)
	if err := put(f, "k", 100); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	former := fdatasync
	t.Cleanup(func() { fdatasync = former })
	fdatasync = func(metaFile) error { return syscall.EIO }
	if err := Finish(f.Path(), []byte("one batch")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("finish: %v", err)
	}
	if body, err := Summary(f.Path()); !errors.Is(err, ErrUnfinished) {
		t.Fatalf("summary %q, %v; want none", body, err)
	}
	fdatasync = former
	if err := Finish(f.Path(), []byte("one batch")); err != nil {
		t.Fatal(err)
	}
	if body, err := Summary(f.Path()); err != nil || string(body) != "one batch" {
		t.Fatalf("summary %q, %v", body, err)
	}
}
