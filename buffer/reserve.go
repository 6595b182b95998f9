package buffer

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"wardlink/buffer/segment"
)

// reserveName is a file of a segment's size that holds nothing. A lane that is never evicted may take its place when there is no other room,
// at the cap or on the disk, so that a loss can always be told.
const reserveName = "reserve"

// noteReserve counts the reserve of a former run.
func (b *Buffer) noteReserve(path string) error {
	size, err := segment.DiskBytes(path)
	if err == nil && (!b.keeps() || size < b.c.SegmentSize) { // not wanted any more, or never finished
		return os.Remove(path)
	}
	b.disk += size
	b.stocked = err == nil
	return err
}

// restock makes the reserve where it lacks and there is room. Under mu.
func (b *Buffer) restock() {
	if b.stocked || b.closed || !b.keeps() || b.disk+b.c.SegmentSize > b.c.Cap {
		return
	}
	path := filepath.Join(b.c.Dir, reserveName)
	err := allocateFile(path, 0, b.c.SegmentSize, os.O_CREATE)
	if err != nil {
		_ = os.Remove(path) // what there is of it serves nobody
		if !b.lacked {
			b.c.Log.Warn("the room for reports of a full buffer cannot be set apart; it is tried again", "error", err)
		}
		b.lacked = true
		return
	}
	b.disk += b.c.SegmentSize
	b.stocked, b.lacked = true, false
}

// keeps: some lanes are evicted and some never are, which is what the reserve is for.
func (b *Buffer) keeps() bool { return len(b.evict) > 0 && len(b.evict) < len(b.lanes) }

// useReserve gives the reserve's room free; false when there is none.
func (b *Buffer) useReserve() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stocked {
		return false
	}
	if err := os.Remove(filepath.Join(b.c.Dir, reserveName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.c.Log.Warn("the room for reports of a full buffer cannot be used", "error", err)
		return false
	}
	b.disk -= b.c.SegmentSize
	b.stocked = false
	return true
}

// preallocate gives the two state files the most that they may need, so that a loss can be stored on a full disk. They are counted so in
// any case (overhead). Under mu, or before anybody else has the buffer.
func (b *Buffer) preallocate() {
	for _, name := range []string{stateName + ".a", stateName + ".b"} {
		path := filepath.Join(b.c.Dir, name)
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) && !b.storeUnderMu("the state cannot be stored") {
			return
		}
		if err := allocateFile(path, keepSize, maxState+abExtra, 0); err != nil {
			b.c.Log.Warn("room for the state cannot be set apart; on a full disk nothing could be evicted", "error", err)
			return
		}
	}
}

const (
	keepSize = 1   // FALLOC_FL_KEEP_SIZE
	abExtra  = 128 // at least what an A/B file has beside its data
)

// allocateFile gives a file blocks; a file system that cannot leaves it as it is.
func allocateFile(path string, mode uint32, size int64, flag int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flag, 0o600)
	if err != nil {
		return err
	}
	for {
		err = syscall.Fallocate(int(f.Fd()), mode, 0, size)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		err = nil
		if mode != keepSize {
			err = f.Truncate(size)
		}
	}
	return errors.Join(err, f.Close())
}
