// Package buffer keeps opaque batches on disk, in lanes of urgency, until someone says that they have arrived. It is crash-safe at
// every instant, bounded in bytes and in memory, and knows nothing of what a batch holds. FORMAT.md describes the files; Check
// verifies them.
//
// What it promises:
//
//   - Append returns nil only when all its batches, in every lane they touch, have been flushed to disk. On an error none may be
//     acknowledged to its source; some may be on disk all the same, and such a batch can turn up in Take, now or after a restart.
//   - A batch is given out by Take until Ack names it, whatever crashes in between. Acknowledgements are durable a second later, so a
//     crash gives out the last second's batches once more; the receiver knows them by their number.
//   - A damaged file costs what is damaged: a batch that does not verify is not given out, a file whose structure is broken is set
//     aside (kept under another name, counted), everything else flows. The package never panics over a file's content.
//   - At the byte cap, files whose batches have all been acknowledged go first. Then, of the lanes that Config.Evict names, the oldest file
//     of the least urgent one goes, after what it takes with it is durably noted (Accounts) and told (Config.Report). Without them Append
//     says ErrFull.
package buffer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

var (
	// ErrMissing: the directory holds no buffer. On a gateway that had one this is a loss, never a fresh start.
	ErrMissing = errors.New("no buffer here")
	// ErrExists: Create found a buffer.
	ErrExists = errors.New("a buffer is here already")
	// ErrLocked: another process has the buffer open.
	ErrLocked = errors.New("buffer is in use by another process: the agent of this state folder runs; stop it first, or ask it with 'wardlink-agent status'")
	// ErrFull: no space is left under the cap, or on the disk. The source must not be acknowledged; it will send again.
	ErrFull = errors.New("buffer is full")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("buffer is closed")
	// ErrInvalid: an Item can never be appended (no frame, unknown lane, number not greater than the last, too large).
	ErrInvalid = errors.New("batch is not valid")
	// ErrNoRecord: no file here holds the sealing record.
	ErrNoRecord = errors.New("no such sealing record here")
)

// ID names a batch: numbers ascend within (epoch, lane).
type ID struct {
	Epoch  [16]byte
	Lane   uint8
	Number uint64
}

// String is epoch/lane/number.
func (id ID) String() string { return fmt.Sprintf("%x/%d/%d", id.Epoch, id.Lane, id.Number) }

// Seen is one source message of a batch.
type Seen struct {
	Digest [32]byte // SHA-256 of the message's bytes
	Copy   uint32   // how many times identical bytes were a new message before
	Mask   uint8    // bit n: the message put something into lane n
}

// Item is a batch to append.
type Item struct {
	ID      ID
	Frame   []byte   // the sealed batch; must not change until Append returns
	Sealing [16]byte // the sealing period it was sealed in
	Record  []byte   // that period's unsigned sealing record, stored once per segment
	Seen    []Seen   // the messages it holds
}

// Batch is a batch to send.
type Batch struct {
	ID      ID
	Sealing [16]byte
	Frame   []byte
}

// Config says where and how. A zero value is allowed where a default is named.
type Config struct {
	Dir         string             // the buffer's own directory
	Lanes       []string           // names of the lanes, most urgent first; at most 8, lower-case letters; fixed by Create
	Order       []string           // order in which Take gives lanes out; nil: as in Lanes
	First       int                // how many lanes at the beginning of Order are given out whole before the others, each the newest first; 0: none
	Cap         int64              // bytes on disk that are never exceeded, everything in Dir included
	SegmentSize int64              // bytes of a segment file; 0: 4 MB; at least 256 KB
	Evict       []string           // lanes whose batches may be deleted undelivered at the cap, least urgent first; nil: none, and Append says ErrFull
	Report      func() error       // tells of losses, in evict.go's order; nil: Accounts alone does
	Keep        time.Duration      // how long delivered files stay when their space is not needed; 0: 72 h
	Verify      func([]byte) error // checks one frame without any key; called before a batch is given out; required by Open
	Log         *slog.Logger       // nil: silent
	Now         func() time.Time   // nil: time.Now; the times of losses and other dates that people read rest on it

	// Elapsed is monotonic, since any instant; nil: the process's. Keep goes by it, so that no jump of a wall clock deletes anything.
	Elapsed func() time.Duration
}

const (
	defaultSegment = 4 << 20
	minSegment     = 256 << 10
	defaultKeep    = 72 * time.Hour
	formatName     = "format"
	lockName       = "lock"
	stateName      = "state"
	ackDelay       = time.Second // how late an acknowledgement may become durable
	keepPoll       = time.Minute
	maxOpen        = 4       // read handles held open
	takeBytes      = 1 << 20 // frames of one Take, beyond the first
)

// overhead is what the directory holds besides segments: the two state files, format, lock, and the directory itself.
const overhead = 2*(maxState+smallFiles) + smallFiles

// smallFiles is the allowance in bytes for the directory and its small files.
const smallFiles = 64 << 10

func (c Config) withDefaults() (Config, error) {
	if c.SegmentSize == 0 {
		c.SegmentSize = defaultSegment
	}
	if c.Keep == 0 {
		c.Keep = defaultKeep
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Elapsed == nil {
		begun := time.Now()
		c.Elapsed = func() time.Duration { return time.Since(begun) }
	}
	if len(c.Lanes) == 0 || len(c.Lanes) > 8 {
		return c, fmt.Errorf("buffer %s: %d lanes; expected 1 to 8", c.Dir, len(c.Lanes))
	}
	for i, name := range c.Lanes {
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz") != "" || slices.Contains(c.Lanes[:i], name) {
			return c, fmt.Errorf("buffer %s: lane name %q; expected distinct names of lower-case letters", c.Dir, name)
		}
	}
	if c.Order == nil {
		c.Order = c.Lanes
	}
	if len(c.Order) != len(c.Lanes) || !slices.Equal(slices.Sorted(slices.Values(c.Order)), slices.Sorted(slices.Values(c.Lanes))) {
		return c, fmt.Errorf("buffer %s: order %v; expected the lanes %v, each once", c.Dir, c.Order, c.Lanes)
	}
	if c.First < 0 || c.First > len(c.Order) {
		return c, fmt.Errorf("buffer %s: %d lanes come first; expected 0 to %d", c.Dir, c.First, len(c.Order))
	}
	for i, name := range c.Evict {
		if !slices.Contains(c.Lanes, name) || slices.Contains(c.Evict[:i], name) {
			return c, fmt.Errorf("buffer %s: evict %v; expected some of the lanes %v, each once at most", c.Dir, c.Evict, c.Lanes)
		}
	}
	if c.SegmentSize < minSegment || c.SegmentSize%segment.PageSize != 0 {
		return c, fmt.Errorf("buffer %s: segment size %d; expected a multiple of %d from %d", c.Dir, c.SegmentSize, segment.PageSize, minSegment)
	}
	if least := int64(len(c.Lanes)+1)*c.SegmentSize + overhead; c.Cap < least {
		return c, fmt.Errorf("buffer %s: cap of %d bytes; %d lanes with segments of %d bytes need at least %d", c.Dir, c.Cap, len(c.Lanes), c.SegmentSize, least)
	}
	return c, nil
}

// Create makes an empty buffer. The directory may exist, without a buffer in it.
func Create(c Config) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("create buffer: %w", err)
	}
	path := filepath.Join(c.Dir, formatName)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("create buffer %s: %w", c.Dir, ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create buffer: %w", err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, lockName), nil, 0o600); err != nil {
		return fmt.Errorf("create buffer: %w", err)
	}
	// The format file comes last and makes the directory a buffer; both it and the names before it are durable then. The parent's
	// entry for the directory is flushed too, or the whole buffer could be missing after a power cut.
	if err := durable.WriteFile(path, encodeFormat(c.Lanes), 0o600); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(filepath.Clean(c.Dir)))
}

func encodeFormat(lanes []string) []byte {
	return fmt.Appendf(nil, "wardlink buffer %d\nlanes %s\n", formatVersion, strings.Join(lanes, " "))
}

// readFormat returns the lanes of the buffer in dir.
func readFormat(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, formatName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("buffer %s: %w", dir, ErrMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("buffer: %w", err)
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) == 3 {
		if names, ok := strings.CutPrefix(lines[1], "lanes "); ok {
			lanes := strings.Split(names, " ")
			if string(b) == string(encodeFormat(lanes)) && len(lanes) <= 8 {
				return lanes, nil
			}
		}
	}
	if name, ok := strings.CutPrefix(lines[0], "wardlink buffer "); ok {
		if version, err := strconv.Atoi(name); err == nil && version > formatVersion {
			return nil, fmt.Errorf("buffer %s: format version %d, this program knows version %d: %w", dir, version, formatVersion, durable.ErrNewer)
		}
	}
	return nil, fmt.Errorf("buffer %s: file %q is not of version %d; this program cannot read the buffer", dir, formatName, formatVersion)
}

// lock takes the directory's lock; it ends with the process, however that ends.
func lock(dir string, how int) (*os.File, error) {
	f, err := durable.Lock(filepath.Join(dir, lockName), how)
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("buffer %s: %w", dir, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("buffer: %w", err)
	}
	return f, nil
}

// Buffer is an open buffer. All methods may be called by many goroutines.
//
// Locks, in the order they are taken: a lane's write lock (one Append at a time per lane, held through the flush), mu (everything in
// memory, reading of files, deletion), storing (the state file). No flush of a batch happens under mu. While Config.Report runs its caller
// holds the write lock of a lane of Config.Evict and evicting: it may append to other lanes, and read.
type Buffer struct {
	c       Config
	lock    *os.File
	lanes   []*lane
	order   []*lane // of Take
	evict   []*lane // least urgent first
	changed chan struct{}

	mu      sync.Mutex
	closed  bool
	resting uint8 // lanes that Take leaves alone
	disk    int64 // bytes on disk, reservations included
	damaged []asideFile
	ageFrom int64         // what age was
	ageAt   time.Duration // when Elapsed gave this
	unread  []unread
	parked  map[ID]parked
	round   round
	handles []*seg // with an open read handle, least recently used first
	sieve   sieve
	body    []byte // of load: the memory that one summary after the other is read into

	stocked bool   // the reserve lies there (reserve.go)
	lacked  bool   // it could not be made, and that was said
	lossRev uint64 // counts changes of losses

	evicting sync.Mutex // held through an eviction, the report included; below the lanes' write locks, above mu
	// Under mu, of makeRoomOnDisk: room was made and is not used yet; nothing is evicted for the disk's sake before noEvict.
	eaten   bool
	rest    time.Duration
	noEvict time.Time

	storing sync.Mutex
	state   *durable.AB

	dirty     atomic.Bool
	dirtied   chan struct{}
	stop      chan struct{}
	keeper    sync.WaitGroup
	flushFail atomic.Uint64
}

// Changed is signalled after Append, Release and a Rest of fewer lanes; its one place is filled while nobody listens.
func (b *Buffer) Changed() <-chan struct{} { return b.changed }

func (b *Buffer) signal() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// Flush makes all acknowledgements and parkings durable now.
func (b *Buffer) Flush() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return fmt.Errorf("flush: %w", ErrClosed)
	}
	return b.storeAndUnlock()
}

// storeAndUnlock writes the state as it is under mu, which the caller holds, and lets go of mu before the disk is waited for.
func (b *Buffer) storeAndUnlock() error {
	b.storing.Lock()
	defer b.storing.Unlock()
	b.dirty.Store(false)
	data := b.encodeState()
	b.mu.Unlock()
	return b.store(data)
}

func (b *Buffer) store(data []byte) error {
	if err := b.state.Store(data); err != nil {
		b.flushFail.Add(1)
		b.dirty.Store(true)
		return err
	}
	return nil
}

// touch notes that the state changed. Under mu.
func (b *Buffer) touch() {
	b.dirty.Store(true)
	select {
	case b.dirtied <- struct{}{}:
	default:
	}
}

// keep runs until Close: it stores the state at most ackDelay after a change and deletes delivered files whose time is over.
func (b *Buffer) keep() {
	defer b.keeper.Done()
	poll := time.NewTicker(keepPoll)
	defer poll.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-poll.C:
			b.mu.Lock()
			b.retry()
			b.expire()
			b.mu.Unlock()
		case <-b.dirtied:
			if !b.settleState() {
				return
			}
		}
	}
}

// settleState waits ackDelay, so that many changes share one write, and stores; on an error again and again. False when stopped.
func (b *Buffer) settleState() bool {
	timer := time.NewTimer(ackDelay)
	defer timer.Stop()
	for {
		select {
		case <-b.stop:
			return false
		case <-timer.C:
		}
		if !b.dirty.Load() {
			return true
		}
		b.mu.Lock()
		if err := b.storeAndUnlock(); err != nil {
			b.c.Log.Error("acknowledgements are not durable yet; a restart would send more batches again", "error", err)
			timer.Reset(ackDelay)
			continue
		}
		return true
	}
}

// Close stores acknowledgements, finishes the segments that are being written, and lets go of the directory. Batches are durable
// already; an error says only that the next start has more to read or to send again.
func (b *Buffer) Close() error {
	for _, kept := range []bool{false, true} { // kept ones last: an eviction in another lane may yet report to them
		for _, l := range b.lanes {
			if l.kept == kept {
				l.write.Lock()
				defer l.write.Unlock()
			}
		}
	}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	close(b.stop)
	var errs []error
	for _, l := range b.lanes {
		errs = append(errs, b.finish(l))
		for _, s := range l.segs {
			b.shut(s)
		}
	}
	b.sieve.close()
	errs = append(errs, b.storeAndUnlock())
	b.keeper.Wait()
	errs = append(errs, b.lock.Close())
	return errors.Join(errs...)
}
