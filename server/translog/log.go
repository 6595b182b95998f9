// Package translog is the one writer of the transparency log. It drains the journal: every event becomes a leaf, all publishes of
// a pass become one window leaf, and about a second after an act was journaled a signed checkpoint covers it.
//
// Order of a pass, and what a crash after each step leaves:
//
//  1. window files (row hashes, rows) durable: files without a leaf; the next start, or the repeat of a pass that failed, removes
//     them and makes the windows anew.
//  2. leaves integrated by Tessera (durable): leaves past the mark; the next start reads them and skips their acts.
//  3. mark stored (durable): the journal's cursor is behind; nothing is read twice, because the mark decides where reading begins.
//  4. journal cursor moved: done. Only now may the journal forget the entries.
//
// So no act is lost (the journal keeps what the mark does not cover) and none doubled (what the log has past the mark is
// recognised by event id, windows by their journal range). What the journal can no longer read is a leaf too: entry.unreadable, one
// for each entry or hole. Package audit verifies all of it from the files alone.
package translog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/internal/durable"
	"wardlink/server/journal"
)

// Errors that callers branch on.
var (
	ErrMissing = errors.New("there is no log here")
	ErrExists  = errors.New("there is a log here already")
	ErrLocked  = errors.New("another process writes this log")
	// ErrUnsound means that log, mark and journal do not belong together, or that one was put back to a former state. Going on would
	// lose acts or log them twice, so nothing is written until a person has decided.
	ErrUnsound = errors.New("log and journal do not fit together")
	// ErrClosed is what WaitFor gives once the writer has ended.
	ErrClosed = errors.New("the log's writer has ended")
)

// Journal is what the log is made of. Sequence numbers start at 1 and ascend; a hole stands for entries that were damaged.
type Journal interface {
	ReadHeads(from uint64, max int) ([]journal.Entry, error) // committed entries with Seq >= from, in order; none is not an error
	Wait(ctx context.Context, after uint64) error            // until an entry with Seq > after is committed
	Cursor(consumer string) uint64
	Resume(consumer string) (uint64, error)      // Cursor for the writer, who begins there; Wait and ReadHeads see the journal at least as it is now
	SetCursor(consumer string, seq uint64) error // durable
}

// consumer is our name as a reader of the journal.
const consumer = "log"

// Config of a log. Dir, Origin and Signer are required everywhere, Journal for Open.
type Config struct {
	Dir     string      // directory of the log, on a local file system
	Origin  string      // audit.Origin of the trust domain and the log's number
	Signer  note.Signer // its name must be Origin
	Journal Journal
	Log     *slog.Logger     // nil: nothing is logged
	Now     func() time.Time // nil: time.Now

	Interval time.Duration // between passes; 0: 500 ms
	// PackAfter is the age at which windows' files are packed; 0: never.
	PackAfter time.Duration
	// Begin is for Create: the journal's entries up to it are another log's, and Entry is the id of the last of them (zero where the journal does not
	// have it any more). 0 for a journal's first log.
	Begin uint64
	Entry audit.EventID
	// First is for Create: a leaf that the log begins with and that no journal holds, such as the word that it succeeds another. nil: none.
	First []byte
	// Drain bounds how long Run goes on after its context has ended, to log and sign what the journal holds. 0: 10 s.
	Drain time.Duration
}

const (
	batchAge           = 100 * time.Millisecond // longest that a leaf waits for others
	batchSize          = 1024
	checkpointInterval = 500 * time.Millisecond
	collectInterval    = 10 * time.Second // superseded partial tiles; Tessera takes at most 25,600 leaves at a time

	stateDir = ".wardlink"
	markName = "mark"
	lockName = "lock"
)

// withDefaults checks what is required and fills in what is not given.
func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" || c.Origin == "" || c.Signer == nil {
		return c, errors.New("log: Dir, Origin and Signer are required")
	}
	if c.Signer.Name() != c.Origin {
		return c, fmt.Errorf("log %s: its key belongs to %q; expected %q: is the trust domain changed or the key file of another log?",
			c.Dir, c.Signer.Name(), c.Origin)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Interval == 0 {
		c.Interval = 500 * time.Millisecond
	}
	if c.Drain == 0 {
		c.Drain = 10 * time.Second
	}
	return c, nil
}

// NewKey makes an Ed25519 key of a log in note's text form. skey is secret; vkey is what audit verifies with.
func NewKey(origin string) (skey, vkey string, err error) {
	skey, vkey, err = note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return "", "", fmt.Errorf("log key for %s: %w", origin, err)
	}
	return skey, vkey, nil
}

// Create makes a log that is empty but for Config.First, with its first signed checkpoint. One that was interrupted may be repeated unless it has a
// first leaf; over a log it is ErrExists.
func Create(cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, stateDir), 0o700); err != nil {
		return fmt.Errorf("create log: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	marks, _, known, err := openMark(cfg.Dir)
	if err != nil {
		return err
	}
	if known {
		return fmt.Errorf("create log %s: %w", cfg.Dir, ErrExists)
	}
	// The mark is written last: without it this is no log, unless somebody took the mark away.
	tree, err := audit.Integrated(cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create log %s: %w", cfg.Dir, err)
	}
	if tree.N > 0 {
		return fmt.Errorf("create log %s: %w: %d leaves and no mark", cfg.Dir, ErrExists, tree.N)
	}
	routeKlog(cfg.Log)
	if err := fill(cfg); err != nil {
		return err
	}
	tree, err = audit.Integrated(cfg.Dir)
	if err != nil {
		return fmt.Errorf("create log %s: %w", cfg.Dir, err)
	}
	return marks.store(mark{Origin: cfg.Origin, Seq: cfg.Begin, Entry: cfg.Entry, Size: uint64(tree.N), Root: tree.Hash})
}

// fill starts the storage of a log that is being made, with Config.First in it and signed for.
func fill(cfg Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), cfg.Drain)
	defer cancel() // ends Tessera's goroutines
	appender, shutdown, err := openTessera(ctx, cfg)
	if err != nil || cfg.First == nil {
		return err
	}
	if _, err := appender.Add(ctx, tessera.NewEntry(cfg.First))(); err != nil {
		return fmt.Errorf("create log %s: its first leaf: %w", cfg.Dir, err)
	}
	if err := shutdown(ctx); err != nil { // returns once a checkpoint covers the leaf
		return fmt.Errorf("create log %s: sign its first leaf: %w", cfg.Dir, err)
	}
	return nil
}

// Position is how far the log in dir is, beside its writer: the journal's entries up to seq are its first size leaves. Leaves past a
// checkpoint are not signed yet.
func Position(dir string) (seq, size uint64, err error) {
	_, m, known, err := openMark(dir)
	if err == nil && !known {
		err = fmt.Errorf("log %s: %w: its mark is gone", dir, ErrMissing)
	}
	return m.Seq, m.Size, err
}

// Log is the open log. Its methods may be called from any goroutine.
type Log struct {
	cfg   Config
	lock  *os.File
	marks *markFile

	add      tessera.AddFn
	shutdown func(context.Context) error
	stop     context.CancelFunc // ends Tessera's goroutines

	// Of the pass alone:
	at       mark
	size     uint64                 // leaves integrated
	known    map[audit.EventID]bool // events that the log holds past the mark
	covered  []span                 // windows that the log holds past the mark
	stale    bool                   // known and covered must be read again
	unpacked map[string]time.Time   // of the packer alone: directories that could not be packed, and when
	madeDir  string                 // last directory of windows that is known to be durable

	// step is called before each step of a pass, and fails it where tests want that.
	step func(name string) error

	closing sync.Once
	ended   chan struct{} // closed with the log

	mu      sync.Mutex
	state   Stats
	pending []pass        // integrated, not yet under a checkpoint
	changed chan struct{} // closed and replaced when a checkpoint was seen
	kick    chan struct{} // tells the watcher that pending has grown
}

// Open takes the log for this process, checks that log, mark and journal fit together, and finds what was logged past the mark.
// The caller must call Run or Close.
func Open(cfg Config) (*Log, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Journal == nil {
		return nil, errors.New("log: Journal is required")
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, stateDir)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("log %s: %w; wardlink-server init makes one", cfg.Dir, ErrMissing)
	}
	l := &Log{
		cfg: cfg, unpacked: map[string]time.Time{}, ended: make(chan struct{}), changed: make(chan struct{}), kick: make(chan struct{}, 1),
		step: func(string) error { return nil }, stop: func() {},
	}
	if l.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := l.open(); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// open does what Open does once the lock is held. Nothing of the log is changed before all checks have passed.
func (l *Log) open() error {
	var known bool
	var err error
	if l.marks, l.at, known, err = openMark(l.cfg.Dir); err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("log %s: %w: its mark is gone", l.cfg.Dir, ErrMissing)
	}
	if err := l.checkStart(); err != nil {
		return err
	}
	if err := l.resync(); err != nil {
		return err
	}
	if err := l.removeUnused(); err != nil {
		return err
	}
	if err := l.join(); err != nil {
		return err
	}
	var ctx context.Context
	ctx, l.stop = context.WithCancel(context.Background())
	routeKlog(l.cfg.Log)
	appender, shutdown, err := openTessera(ctx, l.cfg)
	if err != nil {
		return err
	}
	l.add, l.shutdown = appender.Add, shutdown
	l.state = Stats{Size: l.size, JournalSeq: l.at.Seq}
	l.pending = []pass{{seq: l.at.Seq, size: l.at.Size}}
	l.see()
	return nil
}

// Close ends the writer without draining; Run does it at its end. It may be called twice.
func (l *Log) Close() (err error) {
	l.closing.Do(func() {
		l.stop()
		close(l.ended)
		err = l.lock.Close()
	})
	return err
}

// openTessera starts the log's storage. Its goroutines end with ctx, and only then: a pass under way needs them.
func openTessera(ctx context.Context, cfg Config) (*tessera.Appender, func(context.Context) error, error) {
	driver, err := posix.New(ctx, posix.Config{Path: cfg.Dir})
	if err != nil {
		return nil, nil, fmt.Errorf("open log %s: %w", cfg.Dir, err)
	}
	appender, shutdown, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(cfg.Signer).
		WithBatching(batchSize, batchAge).
		WithCheckpointInterval(checkpointInterval).
		WithGarbageCollectionInterval(collectInterval))
	if err != nil {
		return nil, nil, fmt.Errorf("open log %s: %w", cfg.Dir, err)
	}
	return appender, shutdown, nil
}

// lockDir takes the exclusive lock that makes this process the log's one writer. The kernel gives it back when the process ends,
// however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := durable.Lock(filepath.Join(dir, stateDir, lockName), syscall.LOCK_EX)
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("log %s: %w", dir, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return f, nil
}
