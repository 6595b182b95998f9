package records

import (
	"cmp"
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"time"

	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

var (
	//go:embed accounts_0001.sql
	accounts1 string
	//go:embed accounts_0002.sql
	accounts2 string
	//go:embed accounts_0003.sql
	accounts3 string
	//go:embed accounts_0004.sql
	accounts4 string
)

// accountMigrations come after the records' own, whose batches the first of them counts.
func accountMigrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "records_accounts", Version: 1, SQL: accounts1}, {Domain: "records_accounts", Version: 2, SQL: accounts2},
		{Domain: "records_accounts", Version: 3, SQL: accounts3}, {Domain: "records_accounts", Version: 4, SQL: accounts4}}
}

// Kinds of account_sets; see accounts_0001.sql.
const (
	setHeld = 0
	setVoid = 1
	setLost = 2
)

// maxRuns is how many runs of one stream are looked at, the newest ones. An honest gateway has a handful; one that leaves out every other
// number must not make the others wait.
const maxRuns = 4096

// Gap is a run of batch numbers that a gateway assigned, or must have assigned, and that are neither journaled nor accounted for. One
// that fills later is gone.
type Gap struct {
	Gateway     string
	Epoch       telemetry.Epoch
	Lane        telemetry.Lane
	First, Last uint64
	Since       time.Time // when the server noticed it
	// Firm: the gateway's own report says that it does not have them, nor ever will. Otherwise they may be on their way, or the
	// gateway has not reported since.
	Firm bool
}

// Count is how many batches are missing.
func (g Gap) Count() uint64 { return g.Last - g.First + 1 }

// maxGaps bounds one answer.
const maxGaps = 10_000

// Gaps gives what nobody accounts for, by gateway, the longest known first; at most 10,000.
func (s *Store) Gaps(ctx context.Context) ([]Gap, error) {
	return s.gaps(ctx, "", nil)
}

// GapsOf gives those of one gateway.
func (s *Store) GapsOf(ctx context.Context, gateway string) ([]Gap, error) {
	return s.gaps(ctx, "WHERE s.gateway = $2", []any{gateway})
}

func (s *Store) gaps(ctx context.Context, where string, args []any) (out []Gap, err error) {
	rows, err := s.db.Query(ctx, `SELECT s.gateway, s.epoch, s.lane, g.first, g.last, g.since, g.firm
		FROM account_gaps g JOIN streams s ON s.id = g.stream `+where+` ORDER BY s.gateway, g.since, g.stream, g.first LIMIT $1`,
		append([]any{maxGaps}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("records: gaps: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var g Gap
		var epoch []byte
		var since int64
		if err := rows.Scan(&g.Gateway, &epoch, &g.Lane, &g.First, &g.Last, &since, &g.Firm); err != nil {
			return nil, fmt.Errorf("records: gaps: %w", err)
		}
		g.Epoch, g.Since = telemetry.Epoch(epoch), time.UnixMilli(since)
		out = append(out, g)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("records: gaps: %w", err)
	}
	return out, nil
}

// topRun is the highest run of a stream, and whether the stream has a gap, or something above that was called lost.
type topRun struct {
	first, last uint64
	gaps        bool
}

const (
	findTop = `SELECT r.first, r.last, EXISTS (SELECT 1 FROM account_gaps g WHERE g.stream = r.stream)
			OR EXISTS (SELECT 1 FROM account_sets l WHERE l.stream = r.stream AND l.kind = 2 AND l.last > r.last)
		FROM account_runs r WHERE r.stream = $1 ORDER BY r.first DESC LIMIT 1`
	insertRun = "INSERT INTO account_runs (stream, first, last, since) VALUES ($1, $2, $3, $4)"
)

var extendRuns = bulk{"UPDATE account_runs SET last = v.column1 FROM (VALUES ", ") AS v WHERE account_runs.stream = v.column2 AND account_runs.first = v.column3",
	"CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT)"}

// arrival is a run of numbers that a pass brings.
type arrival struct {
	telemetry.Span
	since int64
}

// arrived enters the numbers of batches that were journaled for the first time. Numbers come nearly in order, so that one statement for
// each stream of a pass is the rule. The stations that they passed are told to passed.
func (r *Records) arrived(tx *sql.Tx, todo []*work, passed *stations) error {
	byStream := make(map[int64][]arrival)
	var order []int64
	for _, w := range todo {
		if w.again {
			continue
		}
		lane := passed.lane(w)
		lane.journaled++
		lane.journaledAt = max(lane.journaledAt, w.received)
		if byStream[w.stream] == nil {
			order = append(order, w.stream)
		}
		byStream[w.stream] = append(byStream[w.stream], arrival{telemetry.Span{First: w.number, Last: w.number}, w.received})
	}
	var extended []any // the runs of streams of which nothing else comes, which is the rule
	for _, stream := range order {
		changed := false // its gaps, once for all that the pass brings: a gateway can leave out every other number
		arrivals := joinArrivals(byStream[stream])
		for _, a := range arrivals {
			if top, ok := r.extends(stream, a); ok && len(arrivals) == 1 && !top.gaps {
				extended = append(extended, int64(a.Last), stream, int64(top.first))
				continue
			}
			gaps, err := r.arrive(tx, stream, a)
			if err != nil {
				return err
			}
			changed = changed || gaps
		}
		if changed {
			if err := r.recount(tx, stream); err != nil {
				return err
			}
		}
	}
	_, err := r.in.write(tx, extendRuns, extended)
	return err
}

// extends tells whether numbers follow the highest run of a stream, which is known, and remembers that run with them.
func (r *Records) extends(stream int64, a arrival) (topRun, bool) {
	top, known := r.in.tops[stream]
	if !known || a.First != top.last+1 || top.gaps {
		return top, false
	}
	top.last = a.Last
	r.in.keepTop(stream, top)
	return top, true
}

func joinArrivals(in []arrival) (out []arrival) {
	slices.SortFunc(in, func(a, b arrival) int { return cmp.Compare(a.First, b.First) })
	for _, a := range in {
		if n := len(out); n > 0 && a.First <= out[n-1].Last+1 {
			out[n-1].Last = max(out[n-1].Last, a.Last)
			out[n-1].since = min(out[n-1].since, a.since)
			continue
		}
		out = append(out, a)
	}
	return out
}

// arrive enters a run of numbers, and tells whether the stream's gaps may be others now.
func (r *Records) arrive(tx *sql.Tx, stream int64, a arrival) (gaps bool, err error) {
	top, known := r.in.tops[stream]
	if !known {
		err := r.in.row(tx, findTop, stream).Scan(&top.first, &top.last, &top.gaps)
		switch {
		case errors.Is(err, sql.ErrNoRows) && a.First == 0:
			_, err := r.in.exec(tx, insertRun, stream, 0, int64(a.Last), a.since)
			// A report may have told of numbers before the first of them came.
			return true, err
		case errors.Is(err, sql.ErrNoRows):
			return true, r.arriveApart(tx, stream, a)
		case err != nil:
			return false, err
		}
	}
	if a.First != top.last+1 {
		return true, r.arriveApart(tx, stream, a)
	}
	if _, err := r.in.write(tx, extendRuns, []any{int64(a.Last), stream, int64(top.first)}); err != nil {
		return false, err
	}
	top.last = a.Last
	r.in.keepTop(stream, top)
	return top.gaps, nil
}

// arriveApart is for numbers that do not follow the highest run: they make a hole, or fill one. Which run is the highest is not known
// after it.
func (r *Records) arriveApart(tx *sql.Tx, stream int64, a arrival) error {
	delete(r.in.tops, stream)
	rows, err := tx.Query("SELECT first, last, since FROM account_runs WHERE stream = $1 AND first <= $2 ORDER BY first DESC", stream, int64(a.Last+1))
	if err != nil {
		return err
	}
	var gone []int64
	for rows.Next() {
		var o arrival
		if err := rows.Scan(&o.First, &o.Last, &o.since); err != nil {
			return errors.Join(err, rows.Close())
		}
		if o.Last+1 < a.First {
			break
		}
		gone = append(gone, int64(o.First))
		a.First, a.Last, a.since = min(a.First, o.First), max(a.Last, o.Last), min(a.since, o.since)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, first := range gone {
		if _, err := tx.Exec("DELETE FROM account_runs WHERE stream = $1 AND first = $2", stream, first); err != nil {
			return err
		}
	}
	_, err = r.in.exec(tx, insertRun, stream, int64(a.First), int64(a.Last), a.since)
	return err
}

// gaps are the numbers that nobody accounts for, those that are firm apart from the others.
func (l *Ledger) gaps() (out []gapRow) {
	end := max(high(l.Journaled), l.Assigned)
	if l.Former >= end {
		return nil
	}
	for _, g := range subtract([]telemetry.Span{{First: l.Former, Last: end - 1}}, slices.Concat(l.Journaled, l.Held.Runs, l.Void.Runs, l.Lost.Runs)) {
		if g.First < l.Covered && g.Last >= l.Covered {
			out = append(out, gapRow{Span: telemetry.Span{First: g.First, Last: l.Covered - 1}, firm: true})
			g.First = l.Covered
		}
		out = append(out, gapRow{Span: g, firm: g.First < l.Covered})
	}
	return out
}

type gapRow struct {
	telemetry.Span
	since int64
	firm  bool
}

// subtract takes sets of numbers out of ascending runs.
func subtract(from, set []telemetry.Span) (out []telemetry.Span) {
	sortSpans(set)
	for _, r := range from {
		rest := true
		for _, s := range set {
			if s.Last < r.First {
				continue
			}
			if s.First > r.Last {
				break
			}
			if s.First > r.First {
				out = append(out, telemetry.Span{First: r.First, Last: s.First - 1})
			}
			if s.Last >= r.Last {
				rest = false
				break
			}
			r.First = s.Last + 1
		}
		if rest {
			out = append(out, r)
		}
	}
	return out
}

// recount makes a stream's gaps anew. A gap that was known keeps the time it was noticed.
func (r *Records) recount(tx *sql.Tx, stream int64) error {
	l, err := readLedger(tx, stream)
	if err != nil {
		return err
	}
	known, err := gapRows(tx, stream, l.Former)
	if err != nil {
		return err
	}
	fresh := l.gaps()
	datesOf(fresh, known, r.now().UnixMilli())
	if err := changeGaps(tx, stream, known, fresh); err != nil {
		return err
	}
	b := l.Balance()
	if err := r.keepLoss(tx, stream, &b); err != nil {
		return err
	}
	if n := len(l.Journaled); n > 0 {
		top := l.Journaled[n-1]
		r.in.keepTop(stream, topRun{first: top.First, last: top.Last, gaps: len(fresh) > 0 || high(l.Lost.Runs) > high(l.Journaled)})
	}
	return nil
}

// datesOf gives each fresh gap the earliest time at which a known one that it shares numbers with was noticed, else now. Both ascend.
func datesOf(fresh, known []gapRow, now int64) {
	for i := range fresh {
		g := &fresh[i]
		g.since = now
		for len(known) > 0 && known[0].Last < g.First {
			known = known[1:]
		}
		for _, o := range known {
			if o.First > g.Last {
				break
			}
			g.since = min(g.since, o.since)
		}
	}
}

// changeGaps makes the known gaps of a stream the fresh ones, writing only what is another. Both ascend.
func changeGaps(tx *sql.Tx, stream int64, known, fresh []gapRow) error {
	stay := make(map[gapRow]bool, len(known))
	for _, g := range fresh {
		stay[g] = true
	}
	for _, g := range known {
		if stay[g] {
			stay[g] = false
			continue
		}
		if _, err := tx.Exec("DELETE FROM account_gaps WHERE stream = $1 AND first = $2", stream, int64(g.First)); err != nil {
			return err
		}
	}
	for _, g := range fresh {
		if !stay[g] {
			continue
		}
		if _, err := tx.Exec("INSERT INTO account_gaps (stream, first, last, since, firm) VALUES ($1, $2, $3, $4, $5)",
			stream, int64(g.First), int64(g.Last), g.since, sqldb.Flag(g.firm)); err != nil {
			return err
		}
	}
	return nil
}

// readLedger reads what is known of one stream's numbers: neither whose they are nor the states of its batches.
func readLedger(tx *sql.Tx, stream int64) (l Ledger, err error) {
	err = tx.QueryRow("SELECT assigned, covered FROM account_streams WHERE stream = $1", stream).Scan(&l.Assigned, &l.Covered)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return l, err
	}
	if l.Journaled, err = spansOf(tx, "SELECT first, last FROM account_runs WHERE stream = $1 ORDER BY first DESC LIMIT $2", stream, maxRuns); err != nil {
		return l, err
	}
	slices.Reverse(l.Journaled)
	if len(l.Journaled) == maxRuns {
		l.Former = l.Journaled[0].First
	}
	rows, err := tx.Query("SELECT kind, first, last, upper FROM account_sets WHERE stream = $1 ORDER BY kind, first", stream)
	if err != nil {
		return l, err
	}
	for rows.Next() {
		var kind int
		var run telemetry.Span
		var upper bool
		if err := rows.Scan(&kind, &run.First, &run.Last, &upper); err != nil {
			return l, errors.Join(err, rows.Close())
		}
		l.tell(kind, run, upper)
	}
	return l, errors.Join(rows.Err(), rows.Close())
}

func spansOf(tx *sql.Tx, query string, args ...any) (out []telemetry.Span, err error) {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var s telemetry.Span
		if err := rows.Scan(&s.First, &s.Last); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		out = append(out, s)
	}
	return out, errors.Join(rows.Err(), rows.Close())
}

func gapRows(tx *sql.Tx, stream int64, from uint64) (out []gapRow, err error) {
	rows, err := tx.Query("SELECT first, last, since, firm FROM account_gaps WHERE stream = $1 AND last >= $2 ORDER BY first", stream, int64(from))
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var g gapRow
		if err := rows.Scan(&g.First, &g.Last, &g.since, &g.firm); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		out = append(out, g)
	}
	return out, errors.Join(rows.Err(), rows.Close())
}
