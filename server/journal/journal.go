package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wardlink/audit"
	"wardlink/buffer/segment"
	"wardlink/internal/durable"
	"wardlink/server/journal/group"
)

var (
	// ErrMissing: the directory holds no journal. On a server that had one this is a loss, never a fresh start.
	ErrMissing = errors.New("no journal here")
	// ErrExists: Create found a journal.
	ErrExists = errors.New("a journal is here already")
	// ErrLocked: another process has the journal open.
	ErrLocked = errors.New("journal is in use by another process: another wardlink-server runs on this directory")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("journal is closed")
	// ErrInvalid: an entry can never be appended.
	ErrInvalid = errors.New("entry is not valid")
)

// Config says where and how. A zero value is allowed where a default is named.
type Config struct {
	Dir         string           // the journal's own directory
	Node        uint32           // of this server among those of its cell; part of every event id
	SegmentSize int64            // bytes of a segment file; 0: 64 MB; at least 1 MB
	Retention   time.Duration    // how long a file stays after it was finished, at least; 0: 7 days. Dispose takes it away then
	Consumers   []string         // a file stays until all of them have passed it; at most 16
	Log         *slog.Logger     // nil: silent
	Now         func() time.Time // nil: time.Now
}

const (
	defaultSegment   = 64 << 20
	minSegment       = 1 << 20
	defaultRetention = 7 * 24 * time.Hour
	formatName       = "format"
	lockName         = "lock"
	cursorName       = "cursors"
	formatText       = "wardlink journal 1\n"
	voidSuffix       = ".void" // of a file set aside in which nothing counts

	queueBytes    = 16 << 20 // heads and blobs that wait for a commit
	commitBytes   = 4 << 20  // heads and blobs of one commit
	commitEntries = 4096
	readBytes     = 8 << 20 // heads and blobs of one Read
	commitPages   = 24      // pages that a commit rewrites or adds besides its value

	// A finished file that cannot be read is tried this often and this long, whichever takes longer, and then passed over: by then it
	// is no hiccup of the disk, and the log and the records wait behind it while publishes go on.
	readTries = 8
	readTime  = 30 * time.Second
)

func (c Config) withDefaults() (Config, error) {
	if c.SegmentSize == 0 {
		c.SegmentSize = defaultSegment
	}
	if c.Retention == 0 {
		c.Retention = defaultRetention
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.SegmentSize < minSegment || c.SegmentSize%segment.PageSize != 0 {
		return c, fmt.Errorf("journal %s: segment size %d; expected a multiple of %d from %d", c.Dir, c.SegmentSize, segment.PageSize, minSegment)
	}
	if err := ValidConsumers(c.Consumers); err != nil {
		return c, fmt.Errorf("journal %s: %w", c.Dir, err)
	}
	return c, nil
}

// ValidConsumers refuses too many, and names that are empty, too long or there twice.
func ValidConsumers(names []string) error {
	if len(names) > 16 {
		return fmt.Errorf("%d consumers; expected at most 16", len(names))
	}
	for i, name := range names {
		if name == "" || len(name) > 64 || slices.Contains(names[:i], name) {
			return fmt.Errorf("consumer name %q; expected distinct names of 1 to 64 bytes", name)
		}
	}
	return nil
}

// Create makes an empty journal. The directory may exist, without a journal in it.
func Create(c Config) error { return CreateAfter(c, 0, time.Time{}) }

// CreateAfter makes an empty journal that takes the place of one that is lost: its first entry is last+1, all consumers have passed last,
// and its event ids are greater than those of a journal that was last opened at started.
func CreateAfter(c Config, last uint64, started time.Time) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("create journal: %w", err)
	}
	path := filepath.Join(c.Dir, formatName)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("create journal %s: %w", c.Dir, ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create journal: %w", err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, lockName), nil, 0o600); err != nil {
		return fmt.Errorf("create journal: %w", err)
	}
	if last > 0 {
		state, _, err := durable.OpenAB(filepath.Join(c.Dir, cursorName), maxCursors)
		if err != nil {
			return fmt.Errorf("create journal: %w", err)
		}
		begin := cursors{start: uint32(max(started.Unix(), 0)), seqs: map[string]uint64{}}
		for _, name := range c.Consumers {
			begin.seqs[name] = last
		}
		if err := state.Store(begin.encode(c.Consumers)); err != nil {
			return fmt.Errorf("create journal: %w", err)
		}
	}
	// The format file comes last and makes the directory a journal.
	if err := durable.WriteFile(path, []byte(formatText), 0o600); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(filepath.Clean(c.Dir)))
}

func readFormat(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, formatName))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("journal %s: %w", dir, ErrMissing)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	version := 0
	if n, _ := fmt.Sscanf(string(b), "wardlink journal %d", &version); n == 1 && version > formatVersion {
		return fmt.Errorf("journal %s: format version %d, this program knows version %d: %w", dir, version, formatVersion, durable.ErrNewer)
	}
	if string(b) != formatText {
		return fmt.Errorf("journal %s: file %q is not of version %d; this program cannot read the journal", dir, formatName, formatVersion)
	}
	return nil
}

func lock(dir string, how int) (*os.File, error) {
	f, err := durable.Lock(filepath.Join(dir, lockName), how)
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("journal %s: %w", dir, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return f, nil
}

// Journal is an open journal. All methods may be called by many goroutines.
//
// Locks, in the order they are taken: reading (files are opened, read, closed and deleted), mu (list of segments, counters).
// A commit's flush happens under neither.
type Journal struct {
	c       Config
	lock    *os.File
	start   uint32
	counter atomic.Uint64

	reading sync.Mutex
	handle  *seg // the one finished segment with an open read handle

	queue *group.Queue[Entry]
	fault group.Fault
	mark  *group.Mark // committed, for those who wait

	mu        sync.Mutex
	closed    bool
	segs      []*seg // in order
	committed uint64
	damaged   []string

	storing sync.Mutex
	state   *durable.AB
	cursors cursors // guarded by mu

	// Of the committer alone:
	current *seg
	entries []Entry // of the commit under way, and the value they are packed into: room that the next one uses again
	value   []byte
	workers sync.WaitGroup
}

// seg is one segment file.
type seg struct {
	summary
	path    string
	file    *segment.File // open for writing, or a read handle; nil when not open
	writing bool
	checked bool
	bad     []error // commits that did not verify; under Journal.reading
	failed  int     // reads since the last good one; under Journal.reading
	since   time.Time
	cold    bool // the kernel was told that its pages are not needed; under Journal.storing
}

const maxBad = 64

// noteBad keeps the error and says whether it is news.
func (s *seg) noteBad(err error) bool {
	for _, known := range s.bad {
		if known.Error() == err.Error() {
			return false
		}
	}
	if len(s.bad) < maxBad {
		s.bad = append(s.bad, err)
	}
	return true
}

// NextID is a new event id, unique for ever: the start second in it is greater than that of every earlier Open of this journal,
// which is kept durably, so that neither two starts within a second nor a clock that went back repeat one. Where the cursors were
// lost, it is greater than that of every file that is left.
func (j *Journal) NextID() audit.EventID {
	var id audit.EventID
	binary.BigEndian.PutUint32(id[:], j.c.Node)
	binary.BigEndian.PutUint32(id[4:], j.start)
	binary.BigEndian.PutUint64(id[8:], j.counter.Add(1))
	return id
}

// Submit queues an entry for the next commit and returns; it blocks while 16 MB are waiting. done runs once, in the order of
// submission, after the flush of the commit that holds the entry, with its sequence number, or with the error that kept it out. An
// entry whose done got an error may still be found in the journal after a crash; it was never acknowledged. done must be quick and
// must not call Submit or Append. Head and Blob must not change until done runs. When Submit returns an error, done does not run.
func (j *Journal) Submit(e Entry, done func(seq uint64, err error)) error {
	if err := e.Valid(j.maxEntry()); err != nil {
		return err
	}
	return j.queue.Submit(e, done)
}

// maxEntry leaves room for an entry in a fresh segment however small segments are.
func (j *Journal) maxEntry() int { return int(min(MaxEntry, j.c.SegmentSize/2)) }

// Append submits entries and waits until all are durable. When ctx ends first its error is returned and the entries may become
// durable all the same.
func (j *Journal) Append(ctx context.Context, entries ...Entry) error {
	return group.Append(ctx, j.Submit, entries)
}

// Wait returns once an entry with Seq > after is committed, or with the error of ctx.
func (j *Journal) Wait(ctx context.Context, after uint64) error { return j.mark.Wait(ctx, after) }

// Alive returns once the goroutine that commits and the one that tells of commits have come round, whether or not commits succeed. An
// error is that of ctx, when a commit or somebody's done does not end, or ErrClosed.
func (j *Journal) Alive(ctx context.Context) error { return j.queue.Alive(ctx) }

// Health is nil unless the last commit failed.
func (j *Journal) Health() error { return j.fault.Err() }

// Stats is the journal at one instant.
type Stats struct {
	Committed      uint64 // sequence number of the last durable entry
	Segments       int
	Queued         int      // bytes
	CommitFailures uint64   // since the start
	Damaged        []string // base names of files set aside
	Cursors        map[string]uint64
}

// Stats counts.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	st := Stats{Committed: j.committed, Segments: len(j.segs), Queued: j.queue.Bytes(), CommitFailures: j.fault.Failures(), Cursors: map[string]uint64{}}
	for _, name := range j.c.Consumers {
		st.Cursors[name] = j.cursors.seqs[name]
	}
	for _, path := range j.damaged {
		st.Damaged = append(st.Damaged, filepath.Base(path))
	}
	return st
}
