package ingest

import (
	"sync"
	"time"

	"wardlink/server/journal"
)

// queue stands between the sessions and the journal, whose own queue knows no sessions: who fills that one fastest would have it. As long as
// less than handed is on its way through the journal, a publish goes straight there and the queue costs two locks. Beyond that publishes
// wait here, by session, and are handed over in turns of some bytes each (deficit round robin, Shreedhar and Varghese 1995), so that a
// gateway that sends ten times as much as the others waits ten times as long for its last and the others wait as they did. Sessions that have
// an alarm waiting come before the others, three turns of four: a hospital's alarms do not wait for another's backlog, and alarms
// without end do not starve it either.
//
// The order within a session is kept, alarms included: a batch must not be durable before the sealing record that it needs. So an alarm waits for
// what its own gateway has sent before it, which is less than the window.
//
// Locks: a session's mu may be held while the queue's is taken, never the other way round. Submit of the journal may block, so it is
// called under neither.
type queue struct {
	journal Journal
	most    int // bytes that may wait here before sessions that have something waiting are no longer read
	bytes   int // and how many may be on their way through the journal
	entries int

	mu       sync.Mutex
	room     sync.Cond // readers wait: waiting became less, or a session ended
	left     sync.Cond // the dispatcher waits: inside became less
	rings    [2]ring   // ordinary, urgent
	turns    int       // of the urgent ring in a row
	waiting  int       // bytes
	inside   int       // bytes handed to the journal whose done has not run
	within   int       // and how many entries
	running  bool      // there is a dispatcher
	handed   time.Time // when the dispatcher last got something off
	delay    time.Duration
	batch    []item // of the dispatcher
	overfull uint64 // how often a reader had to wait for room
}

const (
	ordinary = 0
	urgent   = 1

	// What may be on its way through the journal: two of its commits, one that is flushed and one that gathers meanwhile. With less the disk would
	// wait for us between two flushes; with more an alarm would wait for it.
	handedBytes   = 8 << 20
	handedEntries = 8192

	// pressure is the wait from which on rates hold. A few gateways that drain their backlogs as fast as the journal takes them wait less.
	pressure = 500 * time.Millisecond

	quantum     = 16 << 10 // bytes of a turn; a publish may exceed it, and its session is passed over until that is made up for
	urgentTurns = 3        // in a row, while others wait
)

// item is a publish on its way to the journal.
type item struct {
	entry  journal.Entry
	slot   *slot
	urgent bool
}

// line is what waits of one session, in order. All of it belongs to queue.mu.
type line struct {
	items   []item
	bytes   int
	urgent  int // items that are
	deficit int // bytes that it may still hand over in this turn; negative: it had more than its share
	in      [2]bool
	ended   bool // nobody reads on for it
	cut     bool // nothing of it is handed over any more
}

// ring is the lines that have their turn, first come first served.
type ring struct{ lines []*line }

func (r *ring) push(l *line) { r.lines = append(r.lines, l) }

func (r *ring) pop() *line {
	l := r.lines[0]
	r.lines[0] = nil
	if r.lines = r.lines[1:]; len(r.lines) == 0 {
		r.lines = nil
	}
	return l
}

func newQueue(j Journal, most int) *queue {
	q := &queue{journal: j, most: most, bytes: handedBytes, entries: handedEntries}
	q.room.L, q.left.L = &q.mu, &q.mu
	return q
}

// submit hands a publish over, or lets it wait its turn. It blocks while too much waits and the session has something among it; so
// a gateway with nothing under way is always read. An error means that the journal will never have it.
func (q *queue) submit(l *line, it item) error {
	size := it.slot.size
	q.mu.Lock()
	if l.cut {
		q.mu.Unlock()
		return nil
	}
	if !q.running && q.fits(size) {
		q.inside += size
		q.within++
		q.mu.Unlock()
		err := q.journal.Submit(it.entry, it.slot.complete)
		if err != nil {
			q.gone(size)
		}
		return err
	}
	defer q.mu.Unlock()
	for q.waiting+size > q.most && len(l.items) > 0 && !l.ended {
		q.overfull++
		q.room.Wait()
	}
	if l.cut {
		return nil
	}
	l.items = append(l.items, it)
	l.bytes += size
	q.waiting += size
	if it.urgent {
		l.urgent++
	}
	q.enqueue(l)
	if !q.running {
		q.running, q.handed = true, time.Now()
		go q.dispatch()
	}
	return nil
}

// fits says whether the journal may have so much more. One publish always may.
func (q *queue) fits(size int) bool {
	return q.within == 0 || q.inside+size <= q.bytes && q.within < q.entries
}

// enqueue gives a line with items its turn. One that was ordinary and has an alarm now is in both rings until its old turn comes, which
// is then passed over.
func (q *queue) enqueue(l *line) {
	which := ordinary
	if l.urgent > 0 {
		which = urgent
	}
	if !l.in[which] && !l.in[urgent] {
		l.in[which] = true
		q.rings[which].push(l)
	}
}

// gone notes that a publish has left the journal, durable or not. It runs in the journal's goroutine.
func (q *queue) gone(size int) {
	q.mu.Lock()
	q.inside -= size
	q.within--
	if q.running {
		q.left.Signal()
	}
	q.mu.Unlock()
}

// end lets a session's reader go that waits for room. With cut what waits of it is dropped: nothing was acknowledged, and of a gateway that is
// revoked nothing more should come in. It never blocks.
func (q *queue) end(l *line, cut bool) {
	q.mu.Lock()
	l.ended = true
	if cut && !l.cut {
		l.cut = true
		q.waiting -= l.bytes
		l.items, l.bytes, l.urgent = nil, 0, 0 // its turn, if it has one, is passed over
		q.left.Signal()
	}
	q.room.Broadcast()
	q.mu.Unlock()
}

// dispatch hands over what waits until nothing does.
func (q *queue) dispatch() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		q.batch = q.take(q.batch[:0])
		if len(q.batch) == 0 {
			if len(q.rings[ordinary].lines)+len(q.rings[urgent].lines) == 0 {
				q.running, q.delay, q.batch = false, 0, nil
				return
			}
			q.left.Wait()
			continue
		}
		q.room.Broadcast()
		batch := q.batch
		begun := batch[0].slot.begun // slots are used again once they are complete
		q.mu.Unlock()
		for i := range batch {
			it := &batch[i]
			if err := q.journal.Submit(it.entry, it.slot.complete); err != nil {
				it.slot.complete(0, err) // as if its commit had failed: no acknowledgement
			}
		}
		q.mu.Lock()
		now := time.Now()
		q.handed, q.delay = now, now.Sub(begun)
		clear(batch)
	}
}

// take picks what the journal gets next, as much as fits. The caller holds mu.
func (q *queue) take(batch []item) []item {
	for {
		which := ordinary
		if len(q.rings[urgent].lines) > 0 && (q.turns < urgentTurns || len(q.rings[ordinary].lines) == 0) {
			which = urgent
		}
		if len(q.rings[which].lines) == 0 || !q.fits(q.rings[which].lines[0].next()) {
			return batch
		}
		l := q.rings[which].pop()
		l.in[which] = false
		if len(l.items) == 0 || which == ordinary && l.urgent > 0 {
			continue // it had its turn in the other ring, or has it there
		}
		if q.turns++; which == ordinary {
			q.turns = 0
		}
		l.deficit = min(l.deficit+quantum, quantum)
		n := 0
		for n < len(l.items) && l.deficit > 0 && (which == ordinary || l.urgent > 0) && q.fits(l.items[n].slot.size) {
			it := l.items[n]
			l.deficit -= it.slot.size
			if it.urgent {
				l.urgent--
			}
			l.bytes -= it.slot.size
			q.waiting -= it.slot.size
			q.inside += it.slot.size
			q.within++
			batch = append(batch, it)
			n++
		}
		clear(l.items[:n])
		if l.items = l.items[n:]; len(l.items) == 0 {
			l.items, l.deficit = nil, 0
			continue
		}
		q.enqueue(l)
	}
}

// next is the size of the line's first publish.
func (l *line) next() int {
	if len(l.items) == 0 {
		return 0
	}
	return l.items[0].slot.size
}

// backlog is the queue at one instant.
type backlog struct {
	waiting int           // bytes
	inside  int           // bytes
	delay   time.Duration // for how long what was handed over last had waited, or has not moved
	waits   uint64        // how often a reader waited for room
}

func (q *queue) load() backlog {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := backlog{waiting: q.waiting, inside: q.inside, waits: q.overfull}
	if q.running {
		out.delay = max(q.delay, time.Since(q.handed))
	}
	return out
}

// pressed says whether publishes wait here for longer than a few of the journal's commits take.
func (q *queue) pressed() bool { return q.load().delay >= pressure }
