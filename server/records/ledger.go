package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"wardlink/telemetry"
)

// NumberAccount gives the account of one gateway's batch numbers. A gateway of which nothing came has no rows.
func (s *Store) NumberAccount(ctx context.Context, gateway string) (a NumberAccount, err error) {
	err = s.db.Read(ctx, func(tx *sql.Tx) error {
		unsettled, err := readStates(ctx, tx, gateway)
		if err != nil {
			return err
		}
		a, err = numberAccount(ctx, tx, gateway, unsettled)
		return err
	})
	if err != nil {
		return NumberAccount{}, fmt.Errorf("records: account of %s: %w", gateway, err)
	}
	return a, nil
}

// NumberAccounts gives those of at most limit gateways, ascending by name, behind one name.
func (s *Store) NumberAccounts(ctx context.Context, after string, limit int) (out []NumberAccount, err error) {
	err = s.db.Read(ctx, func(tx *sql.Tx) error {
		out = nil
		var gateways []string
		if err := each(ctx, tx, func(rows *sql.Rows) error {
			var g string
			err := rows.Scan(&g)
			gateways = append(gateways, g)
			return err
		}, "SELECT DISTINCT gateway FROM streams WHERE gateway > $1 ORDER BY gateway LIMIT $2", after, limit); err != nil {
			return err
		}
		unsettled, err := readStates(ctx, tx, "")
		if err != nil {
			return err
		}
		for _, g := range gateways {
			a, err := numberAccount(ctx, tx, g, unsettled)
			if err != nil {
				return fmt.Errorf("%s: %w", g, err)
			}
			out = append(out, a)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("records: accounts: %w", err)
	}
	return out, nil
}

// states are the batches of one stream that are not stored.
type states struct{ pending, dead uint64 }

// readStates walks the index of batches that are not stored, by stream; of one gateway, or of all when gateway is "".
func readStates(ctx context.Context, tx *sql.Tx, gateway string) (map[int64]states, error) {
	out := make(map[int64]states)
	err := each(ctx, tx, func(rows *sql.Rows) error {
		var stream int64
		var state int
		var n uint64
		if err := rows.Scan(&stream, &state, &n); err != nil {
			return err
		}
		st := out[stream]
		if state == stateDead {
			st.dead += n
		} else {
			st.pending += n
		}
		out[stream] = st
		return nil
	}, `SELECT b.stream, b.state, COUNT(*) FROM batches b JOIN streams s ON s.id = b.stream
		WHERE b.state <> 2 AND b.state IN (0, 1, 3) AND ($1 = '' OR s.gateway = $1) GROUP BY b.stream, b.state`, gateway)
	return out, err
}

func numberAccount(ctx context.Context, tx *sql.Tx, gateway string, unsettled map[int64]states) (NumberAccount, error) {
	a := NumberAccount{Gateway: gateway}
	newest, parked, err := readParked(ctx, tx, &a)
	if err != nil {
		return a, err
	}
	ledgers, order, err := readLedgers(ctx, tx, gateway)
	if err != nil {
		return a, err
	}
	for _, id := range order { // before any balance: an epoch's last word is on one lane and about all
		l := ledgers[id]
		l.Pending, l.Dead = unsettled[id].pending, unsettled[id].dead
		l.Parked = parked[telemetry.BatchID{Epoch: l.Epoch, Lane: l.Lane}]
	}
	unsaid := lastWords(ledgers, newest)
	for _, id := range order {
		l := ledgers[id]
		if unsaid[l.Epoch] {
			l.Covered = 0
		}
		l.Told = l.Told || !a.Reported.IsZero() && l.Epoch != newest && !l.first.After(a.Reported)
		if b := l.Balance(); b.Assigned > 0 {
			a.Rows = append(a.Rows, b)
		}
	}
	return a, nil
}

// lastWords are the former epochs of which a report is still to come or to be opened. Which numbers came to nothing an epoch's own reports alone
// say, and the next epoch's report can be here before: until then no number of such an epoch is missing, it is at most on its way.
// One that is parked does not come.
func lastWords(ledgers map[int64]*ledger, newest telemetry.Epoch) map[telemetry.Epoch]bool {
	out := make(map[telemetry.Epoch]bool)
	for _, l := range ledgers {
		if l.Lane != telemetry.LaneSelf || l.Epoch == newest {
			continue
		}
		b := l.Balance()
		out[l.Epoch] = l.Pending > 0 || b.Buffered-b.Untold > 0
	}
	return out
}

// readParked gives the newest report's epoch, and how many batches of each stream it calls parked; it notes when that report came.
func readParked(ctx context.Context, tx *sql.Tx, a *NumberAccount) (telemetry.Epoch, map[telemetry.BatchID]uint64, error) {
	var known Account
	if err := readReport(ctx, tx, a.Gateway, &known); err != nil {
		return telemetry.Epoch{}, nil, err
	}
	a.Reported = known.Received
	if known.Report == nil {
		return telemetry.Epoch{}, nil, nil
	}
	out := make(map[telemetry.BatchID]uint64)
	for _, l := range known.Report.Lanes {
		epoch := l.Epoch
		if epoch == (telemetry.Epoch{}) {
			epoch = known.Epoch
		}
		out[telemetry.BatchID{Epoch: epoch, Lane: l.Lane}] = l.Parked
	}
	return known.Epoch, out, nil
}

// ledger is one stream's, and when the first of its batches came.
type ledger struct {
	Ledger
	first time.Time
}

// readLedgers gathers what is known of each of a gateway's streams.
func readLedgers(ctx context.Context, tx *sql.Tx, gateway string) (ledgers map[int64]*ledger, order []int64, err error) {
	ledgers = make(map[int64]*ledger)
	streams := func(rows *sql.Rows) error {
		var id int64
		var epoch []byte
		var assigned, covered, stored sql.NullInt64
		l := &ledger{Ledger: Ledger{Gateway: gateway}}
		if err := rows.Scan(&id, &epoch, &l.Lane, &assigned, &covered, &stored); err != nil {
			return err
		}
		l.Epoch = telemetry.Epoch(epoch)
		l.Assigned, l.Covered, l.Stored = uint64(assigned.Int64), uint64(covered.Int64), uint64(stored.Int64)
		l.Told = assigned.Valid
		ledgers[id], order = l, append(order, id)
		return nil
	}
	sets := func(rows *sql.Rows) error {
		var id int64
		var kind int
		var run telemetry.Span
		var upper bool
		if err := rows.Scan(&id, &kind, &run.First, &run.Last, &upper); err != nil {
			return err
		}
		if l := ledgers[id]; l != nil {
			l.tell(kind, run, upper)
		}
		return nil
	}
	runs := func(rows *sql.Rows) error {
		var id int64
		var since int64
		var run telemetry.Span
		if err := rows.Scan(&id, &run.First, &run.Last, &since); err != nil {
			return err
		}
		if l := ledgers[id]; l != nil {
			if at := time.UnixMilli(since); l.first.IsZero() || at.Before(l.first) {
				l.first = at
			}
			l.add(run)
		}
		return nil
	}
	err = errors.Join(
		each(ctx, tx, streams, `SELECT s.id, s.epoch, s.lane, a.assigned, a.covered, t.stored FROM streams s
			LEFT JOIN account_streams a ON a.stream = s.id LEFT JOIN account_stored t ON t.stream = s.id
			WHERE s.gateway = $1 ORDER BY s.lane, s.id`, gateway),
		each(ctx, tx, sets, `SELECT a.stream, a.kind, a.first, a.last, a.upper FROM streams s JOIN account_sets a ON a.stream = s.id
			WHERE s.gateway = $1 ORDER BY a.stream, a.kind, a.first`, gateway),
		each(ctx, tx, runs, `SELECT r.stream, r.first, r.last, r.since FROM streams s JOIN account_runs r ON r.stream = s.id
			WHERE s.gateway = $1 ORDER BY r.stream, r.first`, gateway),
	)
	return ledgers, order, err
}

// tell adds a run of what reports said of one kind, above the others of that kind; upper makes the kind's an upper bound.
func (l *Ledger) tell(kind int, run telemetry.Span, upper bool) {
	set := &l.Lost
	switch kind {
	case setHeld:
		set = &l.Held
	case setVoid:
		set = &l.Void
	}
	set.Runs, set.Upper = append(set.Runs, run), set.Upper || upper
}

// add appends a run that lies above the others. Of more than maxRuns only the newest are looked at: whoever leaves out every other number
// must not have all of them in memory.
func (l *Ledger) add(run telemetry.Span) {
	l.Journaled = append(l.Journaled, run)
	if len(l.Journaled) < 2*maxRuns {
		return
	}
	old := l.Journaled[:maxRuns]
	l.FormerJournaled += spanned(old)
	l.Journaled = slices.Clone(l.Journaled[maxRuns:])
	l.Former = l.Journaled[0].First
}
