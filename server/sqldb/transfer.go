package sqldb

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"wardlink/server/journal"
)

const (
	// transferBytes bounds one group of events, below what a journal takes in one: 4 MB.
	transferBytes = 2 << 20
	// takenState is the SQLSTATE of outbox_take where another process took one of the rows.
	takenState = "WL002"
)

// transfer moves rows into a journal that lies in the same database: deleting them and appending their events is one transaction, so after
// a crash each is in one place, whoever asks. Several processes may do that at once: they take turns on a lock, and one that comes behind
// another with the same rows finds them gone, changes nothing, and looks again. Events keep their order, since whoever takes any takes the
// first ones.
//
// The whole transaction is one message to PostgreSQL, which runs it to its end whatever becomes of us: no process can stand still while it
// holds the journal's lock, for which the acknowledgements of all gateways wait. nil means that it is durable; an answer that is lost
// leaves open what happened, and the next look at the rows says so.
func (o *Outbox) transfer(ctx context.Context, rows []waiting) error {
	entries, positions, size := []journal.Entry{}, []string{}, 0
	for _, w := range rows {
		if size += len(w.event); size > transferBytes && len(entries) > 0 {
			break
		}
		entries = append(entries, journal.Entry{ID: w.id, Kind: journal.KindEvent, Head: w.event})
		positions = append(positions, strconv.FormatInt(w.position, 10))
	}
	appended, err := o.journal.(Adjoining).AppendSQL(entries...)
	if err != nil {
		return err
	}
	// Without parameters the driver sends all of it as one simple query, which is one transaction (PostgreSQL's documentation, 55.2.2.1).
	_, err = o.db.writer.ExecContext(ctx, fmt.Sprintf("SELECT outbox_take('{%s}'); %s", strings.Join(positions, ","), appended))
	if sqlState(err) == takenState {
		return nil
	}
	return explain(o.db.path, err)
}
