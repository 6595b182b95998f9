// Package records opens what gateways have sealed and keeps the observations by subject. It is the journal's consumer "records": it
// reads publishes in the journal's order, but alarms ahead of a backlog (ahead.go); verifies by the registry's history of device keys that
// the batch's sealing record was signed by the gateway that published it, opens the batch with the records key, and stores each
// observation once, however often its message or its batch was sent.
//
// A batch is opened after the attempt was counted, so that one that kills the process is counted too (intake.go), and is then stored, pending
// or dead. Three failed attempts make it dead: its frame is kept, an event says so, nothing else waits for it.
// The journal's cursor moves only after the commit; what is read again after a crash is recognised by (gateway, epoch, lane,
// number) and by the message's key, and changes nothing. The database says itself how much of the journal it holds, so that one that
// was restored from a backup is filled up again; what the journal no longer has is a gap, and an event.
package records

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"wardlink/internal/secret"
	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

var (
	//go:embed sqlite_0001.sql
	schema1 string
	//go:embed retention_0001.sql
	retention1 string
	//go:embed retention_0002.sql
	retention2 string
)

// Migrations is the records' schema, and those of readings, retention, waveforms, accounts and repaired times, which apply after it.
func Migrations() []sqldb.Migration {
	own := []sqldb.Migration{{Domain: "records", Version: 1, SQL: schema1}, {Domain: "retention", Version: 1, SQL: retention1},
		{Domain: "retention", Version: 2, SQL: retention2}, {Domain: "waveforms", Version: 1, SQL: waveforms1}, {Domain: "times", Version: 1, SQL: times1}}
	return slices.Concat(own, accountMigrations(), heartbeatMigrations(), configMigrations(), bedMigrations(), longMigrations(), quarantineMigrations(), readingMigrations(), openingMigrations())
}

// Consumer is the name of the records' cursor in the journal.
const Consumer = "records"

// Journal is what the records need of the journal.
type Journal interface {
	Read(from uint64, max int) ([]journal.Entry, error)
	Wait(ctx context.Context, after uint64) error
	Cursor(consumer string) uint64
	Resume(consumer string) (uint64, error) // Cursor for us, who begin there
	SetCursor(consumer string, seq uint64) error
}

// Registry is what the records need of the registry: registry.ErrUnknown for a key that it does not know (yet).
type Registry interface {
	KeyBySPKI(ctx context.Context, spki [32]byte) (registry.Key, error)
}

// Config is what Records need. All fields but Now are required.
type Config struct {
	DB     *sqldb.DB     // with Migrations and sqldb.OutboxMigrations
	Outbox *sqldb.Outbox // of the same DB

	TrustDomain string // of the gateways' SPIFFE ids, by which events name them
	Journal     Journal
	Registry    Registry
	Key         seal.PrivateKey // the records key
	Pseudonym   secret.Bytes    // key of PatientID, at least 16 bytes
	Log         *slog.Logger
	Now         func() time.Time // nil: time.Now

	GatewayRoom int64 // bytes of frames kept that could not be opened, of one gateway; 0: 256 MB
	Room        int64 // and of all gateways; 0: 4 GB

	Retention *Retention           // nil: nothing is ever disposed of
	Files     Files                // the journal's; nil: they are not disposed of
	Elapsed   func() time.Duration // a clock that nobody sets; nil: the process's own
}

// Tuning that nobody needs to set.
const (
	readEntries     = 1024                   // journal entries of one pass (the journal bounds their bytes)
	groupRows       = 20_000                 // observations of one transaction, so that other writers get their turn
	groupBytes      = 32 << 20               // of their contents, about: a frame of a kilobyte can hold half a million samples
	maxAttempts     = 3                      // after which a batch is dead
	retryInterval   = time.Second            // how often pending batches and waiting sealing records are looked at
	retryBatches    = 64                     // of one look
	waitInterval    = 5 * time.Minute        // after which a batch without a sealing record is looked at again
	postponeBatches = 2000                   // of those, of one look
	keyInterval     = 2 * time.Second        // after which a sealing record whose key is unknown is tried again
	errorPause      = 500 * time.Millisecond // after the database or the journal failed
	tellInterval    = 30 * time.Second       // between two words about a fault that lasts
)

// Records is the consumer. Its exported methods are safe for concurrent use; Run is called once.
type Records struct {
	db       *sqldb.DB
	outbox   *sqldb.Outbox
	journal  Journal
	registry Registry
	domain   string
	log      *slog.Logger
	now      func() time.Time
	decode   func([]byte) (telemetry.Batch, error) // telemetry.Decode, but in tests of what a fault in it costs

	in                *interner
	openers           *openers
	gatewayRoom, room int64 // see dead.go

	retention *Retention
	files     Files
	elapsed   func() time.Duration
	disposal  disposal
	clock     clockState    // as of the last look
	looked    bool          // there was one in this life
	lookedAt  time.Duration // elapsed then

	suspect uint64 // journal entries up to here may have been under way when the process died that had this database before; see intake.go

	owed   []attempt // counted, and to be taken back: at most those of one pass, since no other begins before
	unmark bool      // the same of those that records_totals.opening counts
	unsure bool      // the last look at what is pending did not come to its end

	current bool // the last pass met nothing that the server received more than a day before, or nothing at all

	filled bool  // the last pass had as much as makes it worth to look for alarms behind it
	ahead  ahead // see ahead.go

	aheadMore time.Duration // 0, but in tests that are not to hang on how fast the machine is

	stepped map[string]wallSteps // by gateway

	passed uint64 // where the journal's cursor stood when Run began

	told   time.Time             // of Run alone
	held   atomic.Pointer[error] // why nothing is settled now; nil while all goes well
	behind atomic.Int64          // Unix milliseconds at which the server received what is being settled; 0 when nothing waits
}

// New makes the consumer; Run starts it.
func New(cfg Config) (*Records, error) {
	if cfg.DB == nil || cfg.Outbox == nil || cfg.Journal == nil || cfg.Registry == nil || cfg.Log == nil {
		return nil, errors.New("records: DB, Outbox, Journal, Registry and Log are required")
	}
	if len(cfg.Pseudonym) < 16 {
		return nil, fmt.Errorf("records: the pseudonym key has %d bytes, expected at least 16", len(cfg.Pseudonym))
	}
	r := &Records{
		stepped: map[string]wallSteps{},
		db:      cfg.DB, outbox: cfg.Outbox, journal: cfg.Journal, registry: cfg.Registry, domain: cfg.TrustDomain, log: cfg.Log, now: cfg.Now,
		in: newInterner(cfg.Pseudonym), openers: newOpeners(cfg.Key), decode: telemetry.Decode,
		gatewayRoom: cfg.GatewayRoom, room: cfg.Room, retention: cfg.Retention, files: cfg.Files, elapsed: cfg.Elapsed,
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.elapsed == nil {
		start := time.Now()
		r.elapsed = func() time.Duration { return time.Since(start) }
	}
	if r.gatewayRoom == 0 {
		r.gatewayRoom = defaultGatewayRoom
	}
	if r.room == 0 {
		r.room = defaultRoom
	}
	return r, nil
}

// Run consumes the journal until ctx ends. Errors of the database and the journal are logged and tried again for ever: what is in
// the journal is safe there. It returns nil when ctx ended, or an error that trying again cannot mend. It may be called again once it has
// returned; another process may have run meanwhile.
func (r *Records) Run(ctx context.Context) error {
	defer r.in.close()
	r.in.forget() // what was remembered may have been disposed of meanwhile
	r.owed, r.unmark = nil, false
	r.filled, r.ahead = false, ahead{}
	clear(r.stepped)
	for err := r.prepare(ctx); err != nil; err = r.prepare(ctx) {
		if !sqldb.Environment(err) {
			return fmt.Errorf("records: %w", err)
		}
		if !r.pause(ctx, "records cannot start", err) {
			return nil
		}
	}
	for err := r.recover(ctx); err != nil; err = r.recover(ctx) {
		if !r.pause(ctx, "records cannot start", err) {
			return nil
		}
	}
	cursor, ok := r.resume(ctx)
	if !ok {
		return nil
	}
	lastRetry := time.Time{}
	for ctx.Err() == nil {
		if now := r.now(); now.Sub(lastRetry) >= retryInterval || now.Before(lastRetry) {
			lastRetry = now
			more, err := r.retry(ctx)
			if err != nil && !r.pause(ctx, "records cannot retry", err) {
				return nil
			}
			if more { // what is new gets its turn first
				lastRetry = time.Time{}
			}
		}
		// A disposal that fails holds nothing up: it is tried again, and what is new goes on.
		more, err := r.dispose(ctx)
		if err != nil && ctx.Err() == nil {
			r.log.Error("what is over could not be disposed of; trying again", "error", err)
		}
		began := time.Now()
		next, err := r.pass(ctx, cursor)
		if err != nil {
			if !r.pause(ctx, "records are held up", err) {
				return nil
			}
			continue
		}
		r.held.Store(nil)
		if next != cursor {
			cursor = next
			r.lookAhead(ctx, cursor, time.Since(began))
			continue
		}
		if lastRetry.IsZero() {
			continue
		}
		// Wake up for what is pending, and for what is to be disposed of, as well as for what is new.
		timeout := retryInterval
		if more {
			timeout = min(timeout, max(r.disposal.next-r.elapsed(), time.Millisecond))
		}
		wait, cancel := context.WithTimeout(ctx, timeout)
		err = r.journal.Wait(wait, cursor)
		cancel()
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
			if !r.pause(ctx, "records cannot wait for the journal", err) {
				return nil
			}
		}
	}
	return nil
}

func (r *Records) prepare(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	if err := r.in.prepare(ctx, r.db, slices.Concat(internQueries, writeQueries, waveformQueries, layoutQueries)...); err != nil {
		return err
	}
	return r.in.prepareBulks(ctx, r.db)
}

// pause logs why and waits a moment; false means that ctx ended meanwhile.
func (r *Records) pause(ctx context.Context, what string, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	// What lasts is told now and then: a full disk must not be filled by the words about it.
	if now := r.now(); r.held.Load() == nil || now.Sub(r.told) >= tellInterval || now.Before(r.told) {
		r.told = now
		r.log.Error(what, "error", err)
	}
	r.held.Store(&err)
	t := time.NewTimer(errorPause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// recover puts back what a former life was opening singly when it died. Batches that it was opening in a group are still before
// the cursor and are met again there.
func (r *Records) recover(ctx context.Context) error {
	return r.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE batches SET state = $1, due = 0 WHERE state = $2
			AND EXISTS (SELECT 1 FROM batch_frames f WHERE f.stream = batches.stream AND f.number = batches.number)`,
			statePending, stateOpening)
		return err
	})
}

// pass settles what the journal has after cursor and gives the new cursor.
func (r *Records) pass(ctx context.Context, cursor uint64) (uint64, error) {
	r.current = false
	if err := r.repay(ctx); err != nil {
		return cursor, err
	}
	entries, err := r.journal.Read(cursor+1, readEntries)
	if err != nil {
		return cursor, err
	}
	if len(entries) == 0 {
		r.current = true
		r.behind.Store(0)
		return cursor, r.outbox.Flush(ctx)
	}
	if err := r.noteGaps(ctx, cursor, entries); err != nil {
		return cursor, err
	}
	last := entries[len(entries)-1].Seq
	work, err := r.intake(ctx, entries, last)
	if err != nil {
		return cursor, err
	}
	if len(work) > 0 {
		r.behind.Store(work[0].received)
		if err := r.settleAll(ctx, work, last); err != nil {
			return cursor, err
		}
	}
	if err := r.outbox.Flush(ctx); err != nil {
		return cursor, err
	}
	if last > r.passed { // it never goes back, not even when a restored database reads again
		if err := r.journal.SetCursor(Consumer, last); err != nil {
			return cursor, err
		}
	}
	r.filled = many(entries)
	r.current = len(work) > 0 && r.now().Sub(time.UnixMilli(work[0].received)) < 24*time.Hour
	return last, nil
}

// Held says why nothing can be settled now; nil while all goes well. What waits is safe in the journal.
func (r *Records) Held() error {
	if err := r.held.Load(); err != nil {
		return *err
	}
	return nil
}

// publicKey reads a device key of the registry.
func publicKey(der []byte) (*ecdsa.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("not an ECDSA key")
	}
	return ec, nil
}

// Stats are figures for /metrics.
type Stats struct {
	Batches      int64 // stored
	Messages     int64
	Observations int64
	Waveforms    int64 // chunks of samples
	Samples      int64
	Pending      int64         // batches that wait for a sealing record or their next attempt
	Dead         int64         // batches that failed for good
	DeadUnkept   int64         // those of them whose frames are in the journal only, since their gateway's room is full
	KeptBytes    int64         // of the frames of pending and dead batches
	Conflicts    int64         // second frames under one batch number
	Parts        int64         // rows that name parts of devices, which are no observations
	Missing      int64         // journal entries that neither this database nor the journal has any more, at most
	Lag          time.Duration // age of the oldest journaled batch that is not settled; 0 when none waits
}

// Stats reads the figures.
func (r *Records) Stats(ctx context.Context) (s Stats, err error) {
	err = r.db.QueryRow(ctx, `SELECT t.batches, t.messages, t.observations,
		(SELECT COUNT(*) FROM batches WHERE state <> 2 AND state IN (0, 1)),
		(SELECT COUNT(*) FROM batches WHERE state <> 2 AND state = 3),
		(SELECT COUNT(*) FROM batch_conflicts), (SELECT CAST(COALESCE(SUM(last - first + 1), 0) AS BIGINT) FROM journal_gaps), t.parts,
		w.chunks, w.samples, (SELECT COUNT(*) FROM frames_unkept), (SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM frames_kept)
		FROM records_totals t, waveforms_totals w`).Scan(&s.Batches, &s.Messages, &s.Observations, &s.Pending, &s.Dead, &s.Conflicts, &s.Missing, &s.Parts,
		&s.Waveforms, &s.Samples,
		&s.DeadUnkept, &s.KeptBytes)
	if err != nil {
		return Stats{}, fmt.Errorf("records: %w", err)
	}
	if behind := r.behind.Load(); behind > 0 {
		s.Lag = max(0, r.now().Sub(time.UnixMilli(behind)))
	}
	return s, nil
}
