// Package segment is the file under the buffer and the journal: one bbolt database per segment, written by one process until it is
// full, then only read, then deleted whole. It adds what bbolt lacks for data that must not be lost and a program that must not die:
//
//   - a segment appears under its name only when it is complete (temporary name, rename, directory flush);
//   - its space is allocated when it is made, and a commit that might not fit is refused before it starts, so that the bytes on
//     disk are bounded by construction and the mapping never moves under a reader;
//   - after a failed commit a segment is closed for good: what a disk that has just failed holds is only known by reading it again;
//   - old files are checked page by page (walk.go) before bbolt maps them, because bbolt answers damage with panics, some in
//     goroutines of its own and some as an endless recursion that no recover can catch; what remains (a read error on a mapped page)
//     is a fault in the calling goroutine and becomes an error;
//   - files are opened for reading only with ReadOnly and without the free list, whose loading is one of those goroutines.
//
// BUG(double fault): when a commit fails and the already durable pages of the same, current segment are damaged as well, bbolt's
// own roll-back scans them in a goroutine that panics, and the process ends. Nothing acknowledged is lost by it: the supervisor
// starts the process again, and the segment is then an old one that is checked first.
package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"wardlink/internal/durable"
)

// PageSize of every segment in bytes, whatever the machine's own: files can be read on any other machine.
const PageSize = 4096

// Names of files that are not segments yet, or no more.
const (
	TempSuffix    = ".tmp"                // being made; deleted when found at a start
	DamagedSuffix = durable.DamagedSuffix // set aside; kept, counted, never opened again by the program
)

var (
	// ErrNoRoom: the commit might not fit; the caller begins a new segment. Nothing was written.
	ErrNoRoom = errors.New("segment has no room for the commit")
	// ErrClosed: the segment was closed, for good after a failed commit.
	ErrClosed = errors.New("segment is closed")
	// ErrDamaged: the file's content is not what was written.
	ErrDamaged = errors.New("segment is damaged")
	// ErrFault comes with an ErrDamaged that was a fault on mapped memory. A disk that does not answer looks the same, so Inspect,
	// which reads plainly, has the last word.
	ErrFault = errors.New("mapped page cannot be read")
	// ErrExists: a file of that name is there already.
	ErrExists = errors.New("segment exists")
)

// File is one open segment. Its methods may be called by many goroutines; Commit calls wait for each other.
type File struct {
	path     string
	size     int64 // bytes allocated; 0 when opened for reading
	writable bool

	commit sync.Mutex   // one writer
	use    sync.RWMutex // held for reading while the database is in use, for writing while it is closed

	db     *bbolt.DB
	handle *os.File // bbolt's own descriptor, so that it can be closed when bbolt no longer can
	closed bool

	faulty atomic.Bool // a read panicked: bbolt's locks may be held for ever
}

// Create makes a segment of size bytes at path and opens it for writing. fill writes what every segment holds from the start.
//
// Crash argument: everything up to the rename happens under path+TempSuffix, which readers ignore and the next start deletes. The
// rename follows the flush of fill's commit and of the allocation, so whatever is under path was whole once; the directory is
// flushed before Create returns, so that no commit into the file can be durable while its name is not.
func Create(path string, size int64, fill func(*bbolt.Tx) error) (*File, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("create segment %s: %w", path, ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("create segment %s: %w", path, err)
	}
	tmp := path + TempSuffix
	f, err := create(tmp, size, fill)
	if err != nil {
		_ = os.Remove(tmp) // it never was a segment; a leftover is deleted at the next start
		return nil, fmt.Errorf("create segment %s: %w", path, err)
	}
	err = os.Rename(tmp, path)
	if err == nil {
		err = durable.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = f.Close()
		// Under which name it would be found after a crash is open. It holds nothing acknowledged: take both away.
		_ = os.Remove(tmp)
		_ = os.Remove(path)
		return nil, fmt.Errorf("create segment %s: %w", path, err)
	}
	f.path = path
	return f, nil
}

func create(tmp string, size int64, fill func(*bbolt.Tx) error) (*File, error) {
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f := &File{path: tmp, size: size, writable: true}
	options := &bbolt.Options{
		Timeout:        time.Second,
		PageSize:       PageSize,
		NoFreelistSync: true,
		// Ids from the low end: the file's used part stays short.
		FreelistType: bbolt.FreelistArrayType,
		// One page more than can be used, so that no commit ever maps the file anew (a remap waits for all readers).
		InitialMmapSize: int(size) + PageSize,
		OpenFile:        f.keepHandle,
	}
	if err := guard(func() (err error) { f.db, err = bbolt.Open(tmp, 0o600, options); return err }); err != nil {
		f.abandon()
		return nil, err
	}
	if err := allocate(f.handle, size); err != nil {
		f.abandon()
		return nil, fmt.Errorf("allocate %d bytes: %w", size, err)
	}
	if err := f.Commit(0, fill); err != nil {
		f.abandon()
		return nil, err
	}
	// bbolt flushes data only (fdatasync): the allocated length must be durable too, or a file could come back shorter.
	if err := f.handle.Sync(); err != nil {
		f.abandon()
		return nil, err
	}
	return f, nil
}

// allocate reserves blocks, so that a full disk shows when a segment is begun and not in the middle of a commit. A file system
// that cannot (EOPNOTSUPP) gives a sparse file: ENOSPC then comes from a commit, which is handled as every failed commit is.
func allocate(f *os.File, size int64) error {
	for {
		err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
			return f.Truncate(size)
		default:
			return err
		}
	}
}

// Open opens an existing segment for reading. The whole page structure is checked first; damage is ErrDamaged, an error of the
// disk is itself. The file is not written to.
func Open(path string) (*File, error) {
	if _, err := Inspect(path); err != nil {
		return nil, err
	}
	return Reopen(path)
}

// Reopen is Open without the check, for a file that this process wrote or has checked before.
func Reopen(path string) (*File, error) {
	f := &File{path: path}
	options := &bbolt.Options{Timeout: time.Second, ReadOnly: true, OpenFile: f.keepHandle}
	if err := guard(func() (err error) { f.db, err = bbolt.Open(path, 0o600, options); return err }); err != nil {
		f.abandon()
		return nil, fmt.Errorf("open segment %s: %w", path, err)
	}
	return f, nil
}

func (f *File) keepHandle(name string, flag int, mode fs.FileMode) (*os.File, error) {
	h, err := os.OpenFile(name, flag, mode)
	f.handle = h
	return h, err
}

// Path is where the file is.
func (f *File) Path() string { return f.path }

// Commit runs fn in one transaction and makes it durable. bound is the most bytes of pages the transaction can need; ErrNoRoom when
// they might not fit. An error of fn rolls back and leaves the segment usable. Any other error closes the segment for good: whether
// the transaction is on disk is then unknown, and the caller must treat it as not written and its content as possible.
func (f *File) Commit(bound int64, fn func(*bbolt.Tx) error) error {
	f.commit.Lock()
	defer f.commit.Unlock()
	f.use.RLock()
	if f.closed || !f.writable {
		f.use.RUnlock()
		return fmt.Errorf("commit to %s: %w", f.path, ErrClosed)
	}
	harmless := false
	err := guard(func() error {
		tx, err := f.db.Begin(true)
		if err != nil {
			return err
		}
		// tx.Size is the high-water mark. Free pages below it are not counted on: a reader may hold them.
		if tx.Size()+bound > f.size-Reserve {
			err = ErrNoRoom
		} else {
			err = fn(tx)
		}
		if err != nil {
			if rerr := tx.Rollback(); rerr != nil {
				return errors.Join(err, rerr)
			}
			harmless = true
			return err
		}
		return tx.Commit()
	})
	f.use.RUnlock()
	if err == nil {
		return nil
	}
	switch {
	case harmless:
	case errors.Is(err, ErrDamaged):
		f.abandon()
	default:
		f.giveUp()
	}
	return fmt.Errorf("commit to %s: %w", f.path, err)
}

// Room is how many bytes of pages a Commit can still use, 0 when the segment is closed.
func (f *File) Room() int64 {
	var room int64
	if !f.writable {
		return 0
	}
	if err := f.View(func(tx *bbolt.Tx) error { room = f.size - Reserve - tx.Size(); return nil }); err != nil {
		return 0
	}
	return room
}

// View runs fn in a reading transaction. A panic or memory fault in it is returned as ErrDamaged; byte slices taken from the
// transaction must not be used after fn.
func (f *File) View(fn func(*bbolt.Tx) error) error {
	f.use.RLock()
	defer f.use.RUnlock()
	if f.closed {
		return fmt.Errorf("read %s: %w", f.path, ErrClosed)
	}
	if err := guard(func() error { return f.db.View(fn) }); err != nil {
		if errors.Is(err, ErrDamaged) {
			f.faulty.Store(true)
		}
		return fmt.Errorf("read %s: %w", f.path, err)
	}
	return nil
}

// Rest gives back the memory of the pages that were read through the mapping. They stay in the kernel's cache, which takes them back by
// itself, but until then they count as the process's: a gateway of little memory would be judged by files that it has read once. Reading
// them again costs a minor fault each, so a caller that reads without pause, as a server does, leaves it.
func (f *File) Rest() {
	f.use.RLock()
	defer f.use.RUnlock()
	if f.closed || f.faulty.Load() {
		return
	}
	// No more than the file's length, which is never more than what is mapped: behind the mapping lies memory of others. The mapping is
	// shared and is never written through (bbolt writes with pwrite), so what is given back is what the file holds.
	if length := f.length(); length > 0 {
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, f.db.Info().Data, uintptr(length), syscall.MADV_DONTNEED) // advice: refused, it changes nothing
	}
}

// Cool tells the kernel that the pages of a file which is not open need not stay in memory. It is advice: where it fails, it changes nothing.
func Cool(path string) {
	if f, err := os.Open(path); err == nil {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		_ = f.Close()
	}
}

// length is how many bytes of the file are mapped for certain.
func (f *File) length() int64 {
	if f.writable {
		return f.size // InitialMmapSize is more
	}
	info, err := f.handle.Stat()
	if err != nil {
		return 0
	}
	return info.Size() / PageSize * PageSize
}

// Close ends all use of the file. It waits for readers.
func (f *File) Close() error {
	f.commit.Lock()
	defer f.commit.Unlock()
	if f.faulty.Load() {
		f.abandon()
		return nil
	}
	f.use.Lock()
	defer f.use.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if err := f.db.Close(); err != nil {
		return fmt.Errorf("close segment %s: %w", f.path, err)
	}
	return nil
}

// giveUp closes the file after a commit that failed in order: bbolt has rolled back and let go of its locks. Under commit.
func (f *File) giveUp() {
	f.use.Lock()
	defer f.use.Unlock()
	if !f.closed {
		f.closed = true
		// The commit's own error is the one that counts.
		_ = guard(f.db.Close)
	}
}

// abandon closes the file without bbolt's help: after a panic inside bbolt its locks may be held for ever, and Close would wait for
// them. The mapping (address space, no memory of its own) stays until the process ends, and with it the kernel's file object; hence
// the file lock is given back by name, or the file could not be opened for reading any more.
func (f *File) abandon() {
	f.use.Lock()
	defer f.use.Unlock()
	if f.closed {
		return
	}
	f.closed = true
	if f.handle != nil {
		// Errors here say nothing new: the file is given up already.
		_ = syscall.Flock(int(f.handle.Fd()), syscall.LOCK_UN)
		_ = f.handle.Close()
	}
}

// guard runs fn and turns a panic, and a fault on mapped memory (a page that the disk cannot read any more), into ErrDamaged.
func guard(fn func() error) (err error) {
	former := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(former)
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if _, fault := r.(interface{ Addr() uintptr }); fault { // as runtime/debug.SetPanicOnFault promises
			err = fmt.Errorf("%w: %w: %v", ErrDamaged, ErrFault, r)
			return
		}
		err = fmt.Errorf("%w: %v", ErrDamaged, r)
	}()
	return fn()
}

// SetAside renames a damaged segment so that nothing opens it again, and returns the new path. The file is kept as it is.
func SetAside(path string) (string, error) { return durable.SetAside(path) }

// DiskBytes is what a file occupies on disk, allocation included.
func DiskBytes(path string) (int64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512, nil
	}
	return info.Size(), nil
}
