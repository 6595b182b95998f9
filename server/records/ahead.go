package records

import (
	"context"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/telemetry"
)

// Looking ahead: when records are behind, alarms that stand in the journal after others' backlog are opened and stored before it, so that
// neither an outage's backlog nor a gateway that floods keeps another's alarm from being seen.
//
// What is looked at begins at the cursor and goes on without a hole, and all sealing records in it are taken. So sealing records, and the
// alarms of each gateway, are met for the first time in the journal's order, as without it: which epoch is whose and which of two frames under
// one number stands are the same. The ordinary pass meets all of it again, as it meets what a crash left or a restored database lacks, and
// knows it. Neither records_totals.seq nor the journal's cursor moves by it, and where it stands is in memory only: whatever ends the process,
// the next life begins at the cursor again.
const (
	aheadEntries = 256              // records are behind from so many entries on,
	aheadBytes   = 1 << 20          // or from so many bytes
	aheadShare   = 3                // of the time that passes take, a third; a quarter of all
	aheadCredit  = time.Second      // that is saved up at most,
	aheadDebt    = 10 * time.Second // and owed: a disk that stalled is nobody's work
	aheadAlarms  = 256              // batches of one gateway that are taken ahead, near two days of a busy one; so a flood of alarms waits for its turn
	aheadAgain   = 10 * time.Minute // after which it may have as many again: at once, a flood would be all that is looked at
	aheadRest    = 10 * time.Second // after an error
)

// ahead is how far was looked. It belongs to Run's goroutine.
type ahead struct {
	seq     uint64         // the last entry that was looked at; where it is not past the cursor there is none
	alarms  map[string]int // batches taken, by gateway,
	counted time.Time      // since then
	credit  time.Duration  // may be looked ahead for; below 0: was too much
	rest    time.Time      // not before
}

// many tells whether entries are more than the next pass has done with in a moment.
func many(entries []journal.Entry) bool {
	size := 0
	for i := range entries {
		size += entries[i].Size()
	}
	return len(entries) >= aheadEntries || size >= aheadBytes
}

// lookAhead takes alarms from beyond the cursor for a share of the time that the last pass took. Its errors hold nothing up: what they are
// about is met again by the ordinary pass.
func (r *Records) lookAhead(ctx context.Context, cursor uint64, took time.Duration) {
	a := &r.ahead
	if a.seq <= cursor { // only here: whose alarms were passed over has none ahead of others of his
		a.seq = cursor
		if a.alarms == nil || !r.filled || time.Since(a.counted) >= aheadAgain {
			a.alarms, a.counted = make(map[string]int), time.Now()
		}
		if !r.filled {
			return
		}
	}
	a.credit = min(a.credit+took/aheadShare+r.aheadMore, aheadCredit)
	if time.Now().Before(a.rest) {
		return
	}
	for more := true; more && a.credit > 0 && ctx.Err() == nil; {
		began := time.Now()
		var err error
		if more, err = r.stepAhead(ctx, cursor); err != nil && ctx.Err() == nil {
			r.log.Warn("alarms after the backlog could not be looked for; trying again", "from", a.seq+1, "error", err)
			a.rest = time.Now().Add(aheadRest)
			more = false
		}
		a.credit = max(a.credit-time.Since(began), -aheadDebt)
	}
}

// stepAhead looks at the next entries, at most as many as a pass has. more says that there may be others.
func (r *Records) stepAhead(ctx context.Context, cursor uint64) (more bool, err error) {
	a := &r.ahead
	entries, err := r.journal.Read(a.seq+1, readEntries)
	if err != nil || len(entries) == 0 || a.seq == cursor && !many(entries) {
		return false, err
	}
	picked, taken := a.pick(entries)
	if len(picked) > 0 {
		work, err := r.intake(ctx, picked, 0)
		if err != nil {
			return false, err
		}
		if err := r.settleAll(ctx, work, 0); err != nil {
			return false, err
		}
		if err := r.outbox.Flush(ctx); err != nil {
			return false, err
		}
	}
	a.seq = entries[len(entries)-1].Seq
	for gateway, n := range taken {
		a.alarms[gateway] += n
	}
	return true, nil
}

// pick gives the sealing records and the alarms among entries, and how many alarms are whose. Who has had aheadAlarms has no more of them:
// what is taken of a gateway are always the first that stand behind the cursor.
func (a *ahead) pick(entries []journal.Entry) (picked []journal.Entry, taken map[string]int) {
	taken = make(map[string]int)
	for _, e := range entries {
		switch e.Kind {
		case journal.KindSealing:
			picked = append(picked, e)
		case journal.KindPublish:
			row, err := audit.DecodeRow(e.Head) // the pass logs what is none
			if err != nil || telemetry.Lane(row.Lane) != telemetry.LaneAlarm || a.alarms[row.Gateway]+taken[row.Gateway] >= aheadAlarms {
				continue
			}
			taken[row.Gateway]++
			picked = append(picked, e)
		}
	}
	return picked, taken
}
