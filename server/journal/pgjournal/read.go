package pgjournal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"wardlink/server/journal"
	"wardlink/server/sqldb"
)

const (
	readBytes  = 8 << 20 // heads and blobs of one Read, beyond the first entry
	packHead   = 25      // bytes beside head and blob of each entry, and more than those beside all
	readGroups = 256     // groups that one Read looks at

	// The last groups that were read stay in memory, for consumers that take less than a group at a time.
	keptGroups = 4

	// A group that PostgreSQL cannot read because it is damaged is tried this often and this long, whichever takes longer, and then passed
	// over: log and records wait behind it while publishes go on.
	damagedTries = 8
	damagedTime  = 30 * time.Second
	maxDamaged   = 64 // groups that are remembered

	// How often the last number is asked for while somebody waits for it, and while nobody does.
	busyPoll = 50 * time.Millisecond
	idlePoll = 500 * time.Millisecond
)

// reader is what reading remembers.
type reader struct {
	j *Journal

	mu    sync.Mutex
	kept  []*taken          // the newest last
	lost  int               // how often kept was forgotten: what was asked for before that is not kept after it
	bad   map[uint64]string // groups passed over, by first number
	tries map[uint64]*try
}

type try struct {
	count int
	since time.Time
}

// taken is a group, unpacked. It is not changed.
type taken struct {
	first, last uint64
	size        int // of heads and blobs
	entries     []journal.Entry
}

func newReader(j *Journal) *reader {
	return &reader{j: j, bad: map[uint64]string{}, tries: map[uint64]*try{}}
}

func (r *reader) damaged() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Values(r.bad))
}

var errAppendOnly = errors.New("journal: it was opened without consumers and is only appended to")

// Read returns committed entries with Seq >= from, in order: at most max, and at most 8 MB beyond the first; none when there are none yet.
// It may return fewer than there are. Numbers have no holes, except where a group is damaged: Read then goes on behind it, and Stats names it.
// One that PostgreSQL itself cannot read is an error for damagedTries tries and damagedTime.
func (j *Journal) Read(from uint64, max int) ([]journal.Entry, error) {
	if j.pool == nil {
		return nil, errAppendOnly
	}
	ctx, cancel := context.WithTimeout(j.life, readTime)
	defer cancel()
	out, err := j.read.from(ctx, from, max)
	select {
	case <-j.stopped:
		return out, nil // as the segment journal: what is there, and then nothing
	default:
	}
	if err != nil {
		return out, fmt.Errorf("journal: %w", sqldb.Explain(j.c.URL, err))
	}
	return out, nil
}

// ReadHeads is Read with a nil Blob.
func (j *Journal) ReadHeads(from uint64, max int) ([]journal.Entry, error) {
	out, err := j.Read(from, max)
	for i := range out {
		out[i].Blob = nil
	}
	return out, err
}

func (r *reader) from(ctx context.Context, from uint64, max int) (out []journal.Entry, err error) {
	bytes := 0
	// add says whether there is room for more.
	add := func(g *taken) bool {
		for _, e := range g.entries[min(from-min(from, g.first), uint64(len(g.entries))):] {
			if len(out) >= max || len(out) > 0 && bytes+e.Size() > readBytes {
				return false
			}
			out = append(out, e)
			bytes += e.Size()
			from = e.Seq + 1
		}
		from = g.last + 1
		return len(out) < max
	}
	if max <= 0 {
		return nil, nil
	}
	if g := r.remembered(from); g != nil {
		add(g)
		return out, nil // what is behind it, the next Read gives
	}
	for {
		groups, end, err := r.fetch(ctx, from, max-len(out))
		if err != nil {
			r.forget()
			return out, err
		}
		for _, g := range groups {
			if !add(g) {
				return out, nil
			}
		}
		if end || len(out) > 0 {
			return out, nil
		}
	}
}

func (r *reader) remembered(seq uint64) *taken {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.kept {
		if g.first <= seq && seq <= g.last {
			return g
		}
	}
	return nil
}

// remember keeps a group, unless all were forgotten since it was asked for.
func (r *reader) remember(g *taken, lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost != lost {
		return
	}
	r.kept = append(r.kept, g)
	r.kept = r.kept[max(0, len(r.kept)-keptGroups):]
}

// forget: another server may answer next, with other groups behind the last that it knew.
func (r *reader) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = nil
	r.lost++
}

// fetch gives the groups that hold the next max entries from from on, about 8 MB of them at most; end: there are no more behind. What of the
// last is not wanted now is remembered: nothing is read twice by one who reads on.
func (r *reader) fetch(ctx context.Context, from uint64, max int) (groups []*taken, end bool, err error) {
	r.mu.Lock()
	lost := r.lost
	bad := make([]int64, 0, len(r.bad))
	for first := range r.bad {
		bad = append(bad, int64(first))
	}
	r.mu.Unlock()
	rows, err := r.j.pool.Query(ctx, `SELECT first, last, size FROM (SELECT first, last, size, sum(size) OVER w - size AS bytes, sum(entries) OVER w - entries AS before FROM (
			SELECT first, last, size, last - greatest(first, $1) + 1 AS entries FROM journal_groups
			WHERE first >= coalesce((SELECT max(first) FROM journal_groups WHERE first <= $1), 0) AND last >= $1 AND first <> ALL ($2)
			ORDER BY first LIMIT $3) g WINDOW w AS (ORDER BY first)) h
		WHERE bytes < $4 AND before < $5 ORDER BY first`, int64(from), bad, readGroups, readBytes, max)
	if err == nil {
		groups, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*taken, error) {
			var first, last, size int64
			err := row.Scan(&first, &last, &size)
			return &taken{first: uint64(first), last: uint64(last), size: int(min(size, commitBytes))}, err
		})
	}
	if err != nil || len(groups) == 0 {
		return nil, true, err
	}
	if err = r.fill(ctx, groups); damage(err) {
		// One of them. The ones before it are still wanted.
		groups = groups[:1]
		if err = r.fill(ctx, groups); damage(err) {
			return nil, false, r.tried(groups[0], err)
		}
	}
	if err != nil {
		return nil, false, err
	}
	r.remember(groups[len(groups)-1], lost)
	return groups, false, nil
}

// fill reads what the groups hold. One that does not verify is remembered as damaged and holds nothing; so does one that was disposed of
// meanwhile, as a whole, which is no damage.
func (r *reader) fill(ctx context.Context, groups []*taken) error {
	rows, err := r.j.pool.Query(ctx, "SELECT first, bytes FROM journal_pieces WHERE first BETWEEN $1 AND $2 ORDER BY first, piece",
		int64(groups[0].first), int64(groups[len(groups)-1].first))
	if err != nil {
		return err
	}
	packed := make(map[uint64][]byte, len(groups))
	for _, g := range groups {
		packed[g.first] = make([]byte, 0, g.size+packHead*int(min(g.last-g.first+1, commitEntries))+packHead)
	}
	var first int64
	var piece pgtype.DriverBytes // valid until the next row
	if _, err := pgx.ForEachRow(rows, []any{&first, &piece}, func() error {
		packed[uint64(first)] = append(packed[uint64(first)], piece...)
		return nil
	}); err != nil {
		return err
	}
	for _, g := range groups {
		if len(packed[g.first]) == 0 {
			continue
		}
		if err := g.unpack(packed[g.first]); err != nil {
			g.entries = nil
			r.pass(g, err)
		}
	}
	return nil
}

func (g *taken) unpack(packed []byte) error {
	g.entries = make([]journal.Entry, 0, min(g.last-g.first+1, commitEntries))
	count, err := journal.Unpack(g.first, packed, func(e journal.Entry) bool {
		g.entries = append(g.entries, e)
		return true
	})
	if err == nil && count != g.last-g.first+1 {
		err = fmt.Errorf("it holds %d entries", count)
	}
	for _, e := range g.entries {
		if err == nil {
			err = e.Valid(journal.MaxEntry)
		}
	}
	return err
}

func (r *reader) pass(g *taken, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tries, g.first)
	if _, known := r.bad[g.first]; known {
		return
	}
	if len(r.bad) < maxDamaged {
		r.bad[g.first] = fmt.Sprintf("group %d to %d", g.first, g.last)
	}
	r.j.c.Log.Error("a group of the journal does not verify and is passed over; it stays in the database", "database", r.j.name, "first", g.first, "last", g.last, "error", err)
}

// damage: PostgreSQL says that what it stored is damaged.
func damage(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && strings.HasPrefix(e.Code, "XX")
}

// tried counts a group that PostgreSQL cannot read, and passes over it when that was often enough.
func (r *reader) tried(g *taken, cause error) error {
	r.mu.Lock()
	t := r.tries[g.first]
	if t == nil {
		t = &try{since: r.j.c.Now()}
		r.tries[g.first] = t
	}
	t.count++
	over := t.count >= damagedTries && r.j.c.Now().Sub(t.since) >= damagedTime
	r.mu.Unlock()
	if over {
		r.pass(g, cause)
	}
	return cause
}

// poll keeps the last number and the cursors as last seen.
func (j *Journal) poll() {
	for {
		interval := idlePoll
		if j.waiting.Load() > 0 {
			interval = busyPoll
		}
		select {
		case <-j.stopped:
			return
		case <-time.After(interval):
		}
		ctx, cancel := context.WithTimeout(j.life, readTime)
		if _, err := j.look(ctx); err != nil && j.life.Err() == nil {
			j.c.Log.Debug("the journal's last number is not known", "database", j.name, "error", err)
			j.read.forget()
		}
		cancel()
	}
}

// look asks for the last number and the cursors, and gives these.
func (j *Journal) look(ctx context.Context) (seen map[string]uint64, err error) {
	before := j.mark.At()
	rows, err := j.pool.Query(ctx, `SELECT '', coalesce((SELECT last FROM journal_groups ORDER BY first DESC LIMIT 1), (SELECT base FROM journal_state))
		UNION ALL SELECT consumer, seq FROM journal_cursors`)
	if err != nil {
		return nil, err
	}
	seen = map[string]uint64{}
	var name string
	var seq int64
	if _, err := pgx.ForEachRow(rows, []any{&name, &seq}, func() error {
		seen[name] = uint64(seq)
		return nil
	}); err != nil {
		return nil, err
	}
	committed := seen[""]
	delete(seen, "")
	j.mu.Lock()
	j.cursors = seen
	j.mu.Unlock()
	if committed < before {
		// PostgreSQL has been set back: to a backup, or to a standby that had not everything. What is missing was acknowledged.
		j.c.Log.Error("the journal in the database went back; what was behind is lost, and was acknowledged", "database", j.name, "last", before, "now", committed)
		j.read.forget()
		j.mark.Back(committed)
		return seen, nil
	}
	j.mark.Reach(committed)
	return seen, nil
}

// Cursor is what the consumer has passed: the sequence number of the last entry it is done with, 0 for none. It is asked for, since another
// process may have had the consumer's part before; while PostgreSQL does not answer it is as last seen.
func (j *Journal) Cursor(consumer string) uint64 {
	if j.pool == nil {
		return 0
	}
	ctx, cancel := context.WithTimeout(j.life, probeTime)
	defer cancel()
	var seq int64
	err := j.pool.QueryRow(ctx, "SELECT seq FROM journal_cursors WHERE consumer = $1", consumer).Scan(&seq)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		j.cursors[consumer] = uint64(seq)
	}
	return j.cursors[consumer]
}

// Resume is Cursor for the consumer itself, which begins behind it. Only this lets SetCursor go on after the cursor went back: who merely looks at
// figures has not read what is there now. What follows is read from the database, nothing of it from memory, and Wait knows how far it reaches now.
func (j *Journal) Resume(consumer string) (uint64, error) {
	if j.pool == nil {
		return 0, errAppendOnly
	}
	ctx, cancel := context.WithTimeout(j.life, readTime)
	defer cancel()
	j.read.forget()
	seen, err := j.look(ctx)
	if err != nil {
		return 0, fmt.Errorf("begin at the cursor of %s: %w", consumer, sqldb.Explain(j.c.URL, err))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.told[consumer] = seen[consumer]
	return seen[consumer], nil
}

// SetCursor stores durably that the consumer is done with all entries up to seq. It never goes back, and not past what is committed. A cursor that in
// the database is behind what the consumer was told last has gone back with the database, to a standby that had not everything: numbers behind it are
// given again, to entries that the consumer has not seen. It is then refused until the consumer begins there (Resume).
func (j *Journal) SetCursor(consumer string, seq uint64) error {
	select {
	case <-j.stopped:
		return fmt.Errorf("set cursor: %w", journal.ErrClosed)
	default:
	}
	if err := j.known(consumer); err != nil {
		return fmt.Errorf("set cursor: %w", err)
	}
	ctx, cancel := context.WithTimeout(j.life, readTime)
	defer cancel()
	j.mu.Lock()
	told := j.told[consumer]
	j.mu.Unlock()
	tag, err := j.pool.Exec(ctx, `UPDATE journal_cursors SET seq = $2 WHERE consumer = $1 AND seq BETWEEN $3 AND $2
		AND $2 <= coalesce((SELECT last FROM journal_groups ORDER BY first DESC LIMIT 1), (SELECT base FROM journal_state))`, consumer, int64(seq), int64(told))
	if err != nil {
		return fmt.Errorf("set cursor of %s: %w", consumer, sqldb.Explain(j.c.URL, err))
	}
	if tag.RowsAffected() != 1 {
		if _, err := j.look(ctx); err != nil {
			return fmt.Errorf("set cursor of %s: %w", consumer, sqldb.Explain(j.c.URL, err))
		}
		st := j.Stats()
		if st.Cursors[consumer] < told {
			return fmt.Errorf("set cursor of %s to %d: in the database it went back from %d to %d, with what was behind; the consumer must begin there again", consumer, seq, told, st.Cursors[consumer])
		}
		return fmt.Errorf("set cursor of %s to %d: it is at %d and the journal at %d", consumer, seq, st.Cursors[consumer], st.Committed)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cursors[consumer] = max(j.cursors[consumer], seq)
	j.told[consumer] = seq
	return nil
}
