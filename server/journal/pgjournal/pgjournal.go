// Package pgjournal keeps the journal in PostgreSQL, so that many processes append to one sequence. Its promises are journal.Journal's; what
// follows is why they hold here. POSTGRES.md describes tables and functions.
//
// Order and completeness. A group gets its numbers in journal_append, under the lock on journal_lock, which PostgreSQL lets go only when
// the transaction is over: after its commit record is flushed and after other transactions can see it. The next group reads the last number
// in a statement begun under the lock, so it sees that commit, and takes the numbers behind it. So groups become visible in the order of
// their numbers, and without holes: while n is not visible, whoever would take n+1 waits. A reader that has seen n has missed nothing up to
// n, and "number > cursor" is a complete way to read on; a commit that comes late has a later number. One that is rolled back, or whose
// backend dies, gives its numbers to the next: nobody has seen them.
//
// No client can hold the others up by being slow: a group is one message of PostgreSQL's protocol (a function call), which is complete
// before the function begins, and which PostgreSQL commits without hearing from the client again.
//
// Acknowledgement. done gets nil when PostgreSQL says that it is ready for the next message, behind the function's result and without an
// error or a warning between: that is after the commit, and so after its flush to disk (and to the synchronous standbys, where there are
// any; a cancelled wait for them is a warning, and an error here). journal_append itself refuses where fsync or synchronous_commit is off.
//
// Errors. An answer of PostgreSQL that is an error means that the group is not there. A connection that is lost before the answer leaves it
// open: the group's submitters get an error and the group may be found all the same, as in a segment file whose flush failed. Nothing is
// sent twice.
package pgjournal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/journal/group"
	"wardlink/server/sqldb"
)

// Config says where and how. A zero value is allowed where a default is named.
type Config struct {
	URL string // postgres://..., as sqldb.Config.Path; the database has Migrations

	// Consumers whose cursors count; at most 16. Without any the journal is only appended to, which is all that an ingest node's login
	// may do: it reads nothing and disposes of nothing.
	Consumers []string

	Retention time.Duration    // how long a part stays after it was finished, at least; 0: 7 days
	Log       *slog.Logger     // nil: silent
	Now       func() time.Time // nil: time.Now; dates events, nothing else
}

const (
	defaultRetention = 7 * 24 * time.Hour
	queueBytes       = 16 << 20 // heads and blobs that wait for a commit
	readers          = 4        // connections for reading, at most

	// appendTime bounds a group from its first byte to its answer. Then the connection is given up, and the group is in doubt.
	appendTime = 30 * time.Second
	// lockTime bounds the wait for other groups' commits: PostgreSQL then says for certain that the group is not there.
	lockTime = 15 * time.Second
	// readTime bounds a question, so that a consumer sees an error and not a standstill.
	readTime = 20 * time.Second
)

func (c Config) withDefaults() (Config, error) {
	if c.Retention == 0 {
		c.Retention = defaultRetention
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, journal.ValidConsumers(c.Consumers)
}

// Journal is an open journal. All methods may be called by many goroutines.
type Journal struct {
	c     Config
	name  string // of the database, for people
	oid   uint32 // of journal_append
	node  uint32
	start uint32

	counter atomic.Uint64
	queue   *group.Queue[journal.Entry]
	fault   group.Fault
	mark    *group.Mark
	waiting atomic.Int32 // in Wait

	writing  *pgx.ConnConfig
	conn     *pgx.Conn // of the committer alone; nil: none
	retry    time.Time // before it no connection is tried again
	pause    time.Duration
	refused  error // why there is none
	read     *reader
	pool     *pgxpool.Pool // nil without consumers
	mu       sync.Mutex
	cursors  map[string]uint64 // as last seen
	told     map[string]uint64 // as the consumer in this process knows them, by its last Resume or SetCursor
	stopped  chan struct{}
	stopping context.CancelFunc
	life     context.Context
	workers  sync.WaitGroup
}

var _ journal.Store = (*Journal)(nil)

// CreateAfter begins an empty journal behind a number, all consumers past it, and its event ids behind those of a journal that was last
// opened at started. Without it a journal begins at 1.
func CreateAfter(ctx context.Context, c Config, last uint64, started time.Time) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	cfg, err := sqldb.NativeConfig(c.URL, nil)
	if err != nil {
		return fmt.Errorf("create journal: database %s: %w", sqldb.Display(c.URL), err)
	}
	conn, err := sqldb.ConnectNative(ctx, cfg)
	if err != nil {
		return fmt.Errorf("create journal: %w", sqldb.Explain(c.URL, err))
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "LOCK TABLE journal_lock IN EXCLUSIVE MODE"); err != nil {
			return err
		}
		var used bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM journal_groups)").Scan(&used); err != nil {
			return err
		}
		if used {
			return journal.ErrExists
		}
		if _, err := tx.Exec(ctx, "UPDATE journal_state SET base = $1, start = greatest(start, $2)", int64(last), max(started.Unix(), 0)); err != nil {
			return err
		}
		for _, name := range c.Consumers {
			if _, err := tx.Exec(ctx, "INSERT INTO journal_cursors (consumer, seq) VALUES ($1, $2) ON CONFLICT (consumer) DO UPDATE SET seq = excluded.seq", name, int64(last)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("create journal: %w", sqldb.Explain(c.URL, err))
	}
	return nil
}

// Open opens the journal of a database that has Migrations. PostgreSQL must answer now; later it may go away and come back.
func Open(ctx context.Context, c Config) (*Journal, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	j := &Journal{c: c, name: sqldb.Display(c.URL), queue: group.NewQueue[journal.Entry](queueBytes, journal.ErrClosed), cursors: map[string]uint64{}, told: map[string]uint64{}, stopped: make(chan struct{})}
	if err := j.begin(ctx); err != nil {
		return nil, fmt.Errorf("open journal: %w", sqldb.Explain(c.URL, err))
	}
	j.life, j.stopping = context.WithCancel(context.Background())
	notes := make(chan group.Group[journal.Entry], 4)
	j.workers.Go(func() { j.run(notes) })
	j.workers.Go(func() {
		for g := range notes {
			g.Tell()
		}
	})
	if j.pool != nil {
		j.workers.Go(j.poll)
	}
	return j, nil
}

// begin connects, takes the numbers of this run's event ids, and looks where cursors and sequence are.
func (j *Journal) begin(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	// client_connection_check_interval: a backend that waits for its turn gives up when we are gone.
	if j.writing, err = sqldb.NativeConfig(j.c.URL, map[string]string{
		"statement_timeout": "0", "lock_timeout": fmt.Sprint(lockTime.Milliseconds()), "client_connection_check_interval": "2000",
	}); err != nil {
		return fmt.Errorf("database %s: %w", j.name, err)
	}
	if err := j.connect(ctx); err != nil {
		return err
	}
	var node, start int64
	// Committed before its answer, and so before any id is given out.
	if err := j.conn.QueryRow(ctx, "SELECT node_number, start_number FROM public.journal_open()").Scan(&node, &start); err != nil {
		return errors.Join(err, j.hangUp())
	}
	j.node, j.start = uint32(node), uint32(start)
	j.mark = group.NewMark(0)
	if len(j.c.Consumers) == 0 {
		return nil
	}
	if err := j.beginReading(ctx); err != nil {
		return errors.Join(err, j.hangUp())
	}
	return nil
}

func (j *Journal) beginReading(ctx context.Context) error {
	for _, name := range j.c.Consumers {
		// One who is new begins where the journal did.
		if _, err := j.conn.Exec(ctx, "INSERT INTO journal_cursors (consumer, seq) SELECT $1, base FROM journal_state ON CONFLICT DO NOTHING", name); err != nil {
			return err
		}
	}
	// Reading goes by primary keys. Without statistics (a journal's first hours) PostgreSQL might sort or read all.
	reading, err := sqldb.NativeConfig(j.c.URL, map[string]string{"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_sort": "off"})
	if err != nil {
		return err
	}
	if j.pool, err = sqldb.NativePool(ctx, reading, readers); err != nil {
		return err
	}
	j.read = newReader(j)
	if _, err := j.look(ctx); err != nil {
		j.pool.Close()
		return err
	}
	return nil
}

// NextID is a new event id, unique for ever over all processes: the database gives each login a node number and each Open a start number
// that is greater than every former one.
func (j *Journal) NextID() audit.EventID {
	var id audit.EventID
	binary.BigEndian.PutUint32(id[:], j.node)
	binary.BigEndian.PutUint32(id[4:], j.start)
	binary.BigEndian.PutUint64(id[8:], j.counter.Add(1))
	return id
}

// Submit queues an entry for the next group: journal.Journal.Submit has the whole contract.
func (j *Journal) Submit(e journal.Entry, done func(seq uint64, err error)) error {
	if err := e.Valid(journal.MaxEntry); err != nil {
		return err
	}
	return j.queue.Submit(e, done)
}

// Append submits entries and waits until all are durable. When ctx ends first its error is returned and the entries may become durable all
// the same.
func (j *Journal) Append(ctx context.Context, entries ...journal.Entry) error {
	return group.Append(ctx, j.Submit, entries)
}

// AppendSQL writes the statement that appends entries as one group, for a transaction of the journal's own database (sqldb.Adjoining). It must
// be the transaction's last, in one message with it: from then on until the commit everybody's appends wait.
func (j *Journal) AppendSQL(entries ...journal.Entry) (string, error) {
	size := 0
	for _, e := range entries {
		if err := e.Valid(journal.MaxEntry); err != nil {
			return "", err
		}
		size += e.Size()
	}
	return fmt.Sprintf(`SELECT public.journal_append('\x%x'::BYTEA, %d, %d)`, journal.Pack(entries), len(entries), size), nil
}

// Wait returns once an entry with Seq > after is committed, by this process or, some 50 ms later at most, by another; or with the error of ctx.
func (j *Journal) Wait(ctx context.Context, after uint64) error {
	j.waiting.Add(1)
	defer j.waiting.Add(-1)
	return j.mark.Wait(ctx, after)
}

// Alive returns once the goroutine that commits and the one that tells of commits have come round, whether or not commits succeed.
func (j *Journal) Alive(ctx context.Context) error { return j.queue.Alive(ctx) }

// Health is nil unless the last commit failed, or PostgreSQL did not answer when it was last asked.
func (j *Journal) Health() error { return j.fault.Err() }

// Stats counts. Committed and Cursors are as last seen, half a second ago at most while PostgreSQL answers. An append-only journal knows
// only its own commits.
func (j *Journal) Stats() journal.Stats {
	st := journal.Stats{Committed: j.mark.At(), Queued: j.queue.Bytes(), CommitFailures: j.fault.Failures(), Cursors: map[string]uint64{}}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range j.c.Consumers {
		st.Cursors[name] = j.cursors[name]
	}
	if j.read != nil {
		st.Damaged = j.read.damaged()
	}
	return st
}

// Close commits what was submitted, runs its callbacks, and hangs up.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case <-j.stopped:
		return nil
	default:
	}
	close(j.stopped)
	j.queue.Close()
	j.mark.Close(journal.ErrClosed)
	j.mu.Unlock()
	j.stopping()
	j.workers.Wait()
	if j.pool != nil {
		j.pool.Close()
	}
	err := j.hangUp()
	j.mu.Lock()
	return err
}

// known refuses who is not among the consumers.
func (j *Journal) known(consumer string) error {
	if !slices.Contains(j.c.Consumers, consumer) {
		return fmt.Errorf("%q is not a consumer of the journal; expected one of %q", consumer, j.c.Consumers)
	}
	return nil
}
