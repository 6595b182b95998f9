package records

import (
	"slices"
	"time"

	"wardlink/telemetry"
)

// Ledger is what is known, at one instant, of the batch numbers of one gateway, epoch and lane: what came, and what the gateway's own
// sealed reports say of the rest. Balance makes the account of it.
type Ledger struct {
	Gateway string
	Epoch   telemetry.Epoch
	Lane    telemetry.Lane

	Journaled []telemetry.Span // ascending, no two touch
	Held      telemetry.Spans  // that wait in the gateway, parked ones included, as its newest report says
	Parked    uint64           // how many of Held
	Void      telemetry.Spans  // used up, and nothing came of them, as any report said
	Lost      telemetry.Spans  // evicted or damaged, as any report said

	Assigned uint64 // numbers below are used up, as any report said
	Covered  uint64 // of numbers below, the gateway has none but those it holds
	Told     bool   // a report has spoken of it, or one of another epoch came after its first batch
	Former   uint64 // numbers below are not looked at, they are too torn; FormerJournaled of them are journaled
	FormerJournaled,
	Stored, Pending, Dead uint64 // batches that are journaled, as the records counted them
}

// Balance is the account of one gateway, epoch and lane in batch numbers, or the sum of several. Two equations hold for whoever lost nothing
// in silence:
//
//	Assigned  = Journaled + Buffered + Parked + Lost + Void
//	Journaled = Stored + Pending + Dead
//
// Every number is in one class alone: a batch that was journaled counts as that, whatever was said of it before. AtMost names the classes
// whose figure is an upper bound.
type Balance struct {
	Gateway string
	Epoch   telemetry.Epoch // zero in a sum
	Lane    telemetry.Lane

	Assigned              uint64
	Journaled             uint64
	Stored, Pending, Dead uint64
	Buffered, Parked      uint64
	Lost, Void            uint64
	// Untold of Buffered are numbers that were assigned after the newest report and have not come, while later ones have: the gateway has
	// them, or will say what became of them. While there are any, Buffered is an upper bound.
	Untold uint64
	AtMost Classes
	// Told: a report has spoken of it, or a report of another epoch, which has nothing of it, came after its first batch. Otherwise Assigned
	// is only what came, and what lies between.
	Told bool
	// Missing are numbers that nobody accounts for: the gateway assigned them, does not have them, and says nothing of them. Ascending, the
	// first MaxMissing of a row's, none in a sum.
	Missing []telemetry.Span

	lost []telemetry.Span // of Lost, all; none in a sum
}

// MaxMissing bounds the runs of numbers that one balance names.
const MaxMissing = 16

// Classes is a set of the account's classes.
type Classes uint8

// The classes that can be upper bounds.
const (
	ClassBuffered Classes = 1 << iota
	ClassLost
	ClassVoid
	ClassMissing // the row is too torn to be looked at in whole
)

// Difference is how many numbers nobody accounts for; negative if more are accounted for than were assigned, which would be a fault of this
// program.
func (b *Balance) Difference() int64 {
	return int64(b.Assigned) - int64(b.Journaled) - int64(b.Buffered) - int64(b.Parked) - int64(b.Lost) - int64(b.Void)
}

// Unsettled is how many journaled batches are in no state, or in two.
func (b *Balance) Unsettled() int64 {
	return int64(b.Journaled) - int64(b.Stored) - int64(b.Pending) - int64(b.Dead)
}

// Balances tells whether both equations hold, exactly or by upper bounds that say so. Of what no report has spoken nothing is known to hold.
func (b *Balance) Balances() bool {
	return b.Told && b.Difference() == 0 && b.Unsettled() == 0
}

// Add adds the balance of another epoch. A sum balances only if each of its parts does; its own figures do not tell.
func (b *Balance) Add(o Balance) {
	b.Told = b.Told && o.Told
	b.Assigned += o.Assigned
	b.Journaled += o.Journaled
	b.Stored += o.Stored
	b.Pending += o.Pending
	b.Dead += o.Dead
	b.Buffered += o.Buffered
	b.Parked += o.Parked
	b.Lost += o.Lost
	b.Void += o.Void
	b.Untold += o.Untold
	b.AtMost |= o.AtMost
}

// Wipe makes the account that of a gateway which has signed that it wiped itself: what its last report held is lost.
func (b *Balance) Wipe() {
	b.Lost += b.Buffered + b.Parked
	b.Buffered, b.Parked, b.Untold = 0, 0, 0
	if b.AtMost&ClassBuffered != 0 {
		b.AtMost = b.AtMost&^ClassBuffered | ClassLost
	}
}

// class is a set of numbers on its way into the account.
type class struct {
	set   telemetry.Spans
	count *uint64
	bit   Classes
}

// Balance makes the account. A number that several sets name counts once: journaled goes before all, since what turned up is there whatever
// was said of it; then exact sets before upper bounds, which name other numbers besides; and among equals what the gateway holds before what
// it called lost or void in a former report. Lost goes before void: what was on disk when it was lost may have been acknowledged to its
// monitor, though the Append that brought it there failed. On lane self void goes first: the report that takes another's place says that the
// former is void while it is still in the buffer.
//
// What is lost was assigned, whether or not a report came between: of a gateway's last file, damaged, only an upper bound is known.
func (l *Ledger) Balance() Balance {
	b := Balance{
		Gateway: l.Gateway, Epoch: l.Epoch, Lane: l.Lane, Stored: l.Stored, Pending: l.Pending, Dead: l.Dead,
		Journaled: l.FormerJournaled + spanned(l.Journaled), Told: l.Told,
	}
	end := max(l.Assigned, high(l.Journaled), high(l.Lost.Runs), l.Former)
	b.Assigned = end
	held := class{l.Held, &b.Buffered, ClassBuffered}
	void, lost := class{l.Void, &b.Void, ClassVoid}, class{l.Lost, &b.Lost, ClassLost}
	order := []class{held, lost, void}
	if l.Lane == telemetry.LaneSelf {
		order = []class{void, held, lost}
	}
	slices.SortStableFunc(order, func(x, y class) int { return upperRank(x.set) - upperRank(y.set) })
	if end <= l.Former {
		return l.torn(b)
	}
	rest := subtract([]telemetry.Span{{First: l.Former, Last: end - 1}}, slices.Clone(l.Journaled))
	for _, c := range order {
		left := subtract(rest, slices.Clone(c.set.Runs))
		if *c.count = spanned(rest) - spanned(left); *c.count > 0 && c.set.Upper {
			b.AtMost |= c.bit
		}
		if c.bit == ClassLost {
			b.lost = subtract(rest, slices.Clone(left))
		}
		rest = left
	}
	b.Parked = min(l.Parked, b.Buffered)
	b.Buffered -= b.Parked
	for _, r := range rest {
		if r.Last >= l.Covered {
			from := max(r.First, l.Covered)
			b.Untold += r.Last - from + 1
			if r.First >= l.Covered {
				continue
			}
			r.Last = l.Covered - 1
		}
		if len(b.Missing) < MaxMissing {
			b.Missing = append(b.Missing, r)
		}
	}
	if b.Untold > 0 {
		b.Buffered += b.Untold
		b.AtMost |= ClassBuffered
	}
	return l.torn(b)
}

// torn marks the account of a lane of which the oldest numbers are not looked at.
func (l *Ledger) torn(b Balance) Balance {
	if l.Former > l.FormerJournaled {
		b.AtMost |= ClassMissing
	}
	return b
}

// high is 1 more than the greatest number of ascending runs.
func high(runs []telemetry.Span) uint64 {
	if len(runs) == 0 {
		return 0
	}
	return runs[len(runs)-1].Last + 1
}

func upperRank(s telemetry.Spans) int {
	if s.Upper {
		return 1
	}
	return 0
}

func spanned(runs []telemetry.Span) (n uint64) {
	for _, r := range runs {
		n += r.Last - r.First + 1
	}
	return n
}

// NumberAccount is the account of one gateway's batch numbers at one instant: one snapshot of the database.
type NumberAccount struct {
	Gateway  string
	Reported time.Time // receipt of the newest report; zero: never
	Rows     []Balance // by lane and, within a lane, epochs in the order in which the server met them
}
