package translog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/transparency-dev/tessera"

	"wardlink/audit"
	"wardlink/server/journal"
)

// Bounds of one pass, so that a backlog is drained in steps of bounded memory (some 20 MB).
const (
	readEntries = 4096
	passRows    = 4 * audit.MaxWindowRows
	passBytes   = 8 << 20 // of event leaves
)

// pass is what one turn takes from the journal.
type pass struct {
	seq    uint64 // last journal entry taken
	entry  audit.EventID
	size   uint64    // leaves once it is integrated
	oldest time.Time // server's clock of its oldest act; zero when it added nothing

	leaves  [][]byte
	windows []windowFiles
	bytes   int // of event leaves
	taken   int // rows

	open openWindow
}

// windowFiles are a closed window's files.
type windowFiles struct {
	first, last  uint64
	rows, detail []byte
}

// openWindow gathers rows until the pass ends, the window is full, or the next publish is in the log already.
type openWindow struct {
	first, last uint64
	received    int64
	rows        [][]byte
}

// turn takes one pass from the journal to the log. more says that the journal had more than one pass may take. A turn that
// failed may or may not have reached the log; the next one looks first. After ErrUnsound there must be no next one.
func (l *Log) turn(ctx context.Context) (more bool, err error) {
	if l.stale {
		// A pass that was broken off by ctx may still be adding leaves: then nothing is looked at, let alone removed.
		if err := ctx.Err(); err != nil {
			return false, fmt.Errorf("log: a pass that was broken off is not repeated: %w", err)
		}
		// The journal may have come back from what failed, and shorter.
		if err := l.join(); err != nil {
			return false, err
		}
		if err := l.resync(); err != nil {
			return false, err
		}
		// The repeat may cut its windows elsewhere. Once the mark is past them nobody could tell the failed pass's files from lost leaves.
		if err := l.removeUnused(); err != nil {
			return false, err
		}
	}
	l.stale = true
	more, err = l.pass(ctx)
	l.stale = err != nil
	return more, err
}

// pass does the four steps of the package's comment, in their order.
func (l *Log) pass(ctx context.Context) (more bool, err error) {
	p, more, err := l.collect()
	if err != nil || p.seq == l.at.Seq {
		return false, err
	}
	for _, w := range p.windows {
		if err := l.writeWindow(w); err != nil {
			return false, err
		}
	}
	if err := l.step("add"); err != nil {
		return false, err
	}
	if err := l.integrate(ctx, &p); err != nil {
		return false, err
	}
	if err := l.step("mark"); err != nil {
		return false, err
	}
	if err := l.moveMark(p); err != nil {
		return false, err
	}
	l.announce(p)
	if err := l.step("cursor"); err != nil {
		return false, err
	}
	if err := l.cfg.Journal.SetCursor(consumer, p.seq); err != nil {
		return false, fmt.Errorf("move journal cursor to %d: %w", p.seq, err)
	}
	return more, nil
}

// collect reads the journal from the mark on. It goes on past the bounds of a pass until it has met everything that the log holds
// past the mark: the mark may move over those leaves only together with their entries.
func (l *Log) collect() (p pass, more bool, err error) {
	p.seq = l.at.Seq
	for {
		entries, err := l.cfg.Journal.ReadHeads(p.seq+1, readEntries)
		if err != nil {
			return p, false, fmt.Errorf("read journal at %d: %w", p.seq+1, err)
		}
		for _, e := range entries {
			if e.Seq <= p.seq {
				return p, false, l.unsound("the journal goes back from %d to %d", p.seq, e.Seq)
			}
			if e.Seq > p.seq+1 {
				if err := l.takeHole(&p, p.seq+1, e.Seq-1); err != nil {
					return p, false, err
				}
			}
			if err := l.take(&p, e); err != nil {
				return p, false, err
			}
			p.seq, p.entry = e.Seq, e.ID
		}
		met := len(l.known) == 0 && len(l.covered) == 0
		if len(entries) == 0 && !met {
			return p, false, l.unsound("%d events and %d windows past its mark are not in the journal", len(l.known), len(l.covered))
		}
		if len(entries) == 0 || (met && (p.taken >= passRows || p.bytes >= passBytes)) {
			return p, len(entries) > 0, l.closeWindow(&p)
		}
	}
}

// take adds one journal entry to the pass, unless the log holds it already.
func (l *Log) take(p *pass, e journal.Entry) error {
	var err error
	switch e.Kind {
	case journal.KindPublish:
		var row audit.Row
		if row, err = audit.DecodeRow(e.Head); err == nil && row.ID == e.ID {
			return l.takeRow(p, e, row)
		}
	case journal.KindEvent, journal.KindSealing:
		var ev audit.Event
		if ev, err = audit.DecodeEvent(e.Head); err == nil && ev.ID == e.ID {
			l.takeEvent(p, ev.ID, ev.Time, bytes.Clone(e.Head))
			return nil
		}
	default:
		err = fmt.Errorf("kind %d is unknown", e.Kind)
	}
	if err == nil {
		err = errors.New("its head has another event id")
	}
	return l.takeUnreadable(p, e, err)
}

// takeEvent adds an event's leaf as it stands in the journal.
func (l *Log) takeEvent(p *pass, id audit.EventID, ms int64, leaf []byte) {
	if l.known[id] {
		delete(l.known, id)
		return
	}
	p.leaves = append(p.leaves, leaf)
	p.bytes += len(leaf)
	p.age(ms)
}

// takeUnreadable logs that an entry cannot be read: stopping there would keep every later act out of the log, and passing
// over it would lose one in silence. The leaf's id follows from the position, so that a repeat is recognised.
func (l *Log) takeUnreadable(p *pass, e journal.Entry, cause error) error {
	l.cfg.Log.Error("journal entry cannot be read; logged as unreadable", "journal_seq", e.Seq, "kind", e.Kind, "error", cause)
	h := sha256.New()
	h.Write([]byte("wardlink/unreadable/1\x00" + l.cfg.Origin + "\x00"))
	h.Write(binary.BigEndian.AppendUint64(nil, e.Seq))
	now, sum := l.cfg.Now().UnixMilli(), sha256.Sum256(e.Head)
	ev := audit.Event{
		ID: audit.EventID(h.Sum(nil)[:16]), Type: audit.EntryUnreadable, Time: now, Actor: audit.Actor{ID: "server"}, Outcome: audit.Failed,
		Detail: map[string]string{
			"entry": e.ID.String(), "journal": strconv.FormatUint(e.Seq, 10), "kind": strconv.Itoa(int(e.Kind)),
			"head_sha256": hex.EncodeToString(sum[:]),
		},
	}
	leaf, err := audit.EncodeEvent(ev)
	if err != nil {
		return err
	}
	l.takeEvent(p, ev.ID, now, leaf)
	return nil
}

// takeHole logs that the journal's entries first to last cannot be read, in one leaf, and the log goes on: the journal promises holes
// behind what was damaged, and stopping would keep every later act out of the log. Its id follows from the range, so that a repeat
// is recognised. No window reaches over a hole; so one within a logged window is the loss of what the log says was there.
func (l *Log) takeHole(p *pass, first, last uint64) error {
	if err := l.closeWindow(p); err != nil {
		return err
	}
	for _, s := range l.covered {
		if s.First <= last && first <= s.Last {
			return l.unsound("journal entries %d to %d are gone; its window past the mark over %d to %d holds some of them", first, last, s.First, s.Last)
		}
	}
	h := sha256.New()
	h.Write([]byte("wardlink/hole/1\x00" + l.cfg.Origin + "\x00"))
	h.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, first), last))
	ev := audit.Event{
		ID: audit.EventID(h.Sum(nil)[:16]), Type: audit.EntryUnreadable, Time: l.cfg.Now().UnixMilli(), Actor: audit.Actor{ID: "server"},
		Outcome: audit.Failed, Count: last - first + 1, Reason: fmt.Sprintf("journal entries %d..%d unreadable", first, last),
		Detail: map[string]string{"first": strconv.FormatUint(first, 10), "last": strconv.FormatUint(last, 10)},
	}
	l.cfg.Log.Error("journal entries cannot be read; logged as unreadable", "first", first, "last", last)
	leaf, err := audit.EncodeEvent(ev)
	if err != nil {
		return err
	}
	l.takeEvent(p, ev.ID, ev.Time, leaf)
	return nil
}

// takeRow adds a publish to the open window. The head is copied: the journal's memory may hold the frame beside it, and must not be kept.
func (l *Log) takeRow(p *pass, e journal.Entry, row audit.Row) error {
	for i := range l.covered {
		if s := &l.covered[i]; s.First <= e.Seq && e.Seq <= s.Last {
			// Windows never overlap: the one that is open ends before the one that the log has.
			if err := l.closeWindow(p); err != nil {
				return err
			}
			return l.skipRow(i, e)
		}
	}
	w := &p.open
	if len(w.rows) == 0 {
		w.first = e.Seq
	}
	w.last, w.received = e.Seq, row.Received
	w.rows = append(w.rows, bytes.Clone(e.Head))
	p.taken++
	p.age(row.Received)
	if len(w.rows) == audit.MaxWindowRows {
		return l.closeWindow(p)
	}
	return nil
}

// skipRow passes over a publish that the logged window i holds. With the window's last row they must all have been the ones that were logged: a
// journal that was put back and has grown again has other ones under their numbers.
func (l *Log) skipRow(i int, e journal.Entry) error {
	s := &l.covered[i]
	s.rows = append(s.rows, bytes.Clone(e.Head))
	if e.Seq != s.Last && uint64(len(s.rows)) < s.Count {
		return nil
	}
	w, _, err := audit.NewWindow(l.cfg.Origin, s.First, s.Last, s.Time, s.rows)
	if err != nil {
		return err
	}
	if e.Seq != s.Last || w.Root != s.Root {
		return l.unsound("its window over journal %d to %d does not hold the rows that the journal has there", s.First, s.Last)
	}
	l.covered = append(l.covered[:i], l.covered[i+1:]...)
	return nil
}

// closeWindow turns the open window into a leaf and its two files. Its leaf follows those of the events that lie within its range.
func (l *Log) closeWindow(p *pass) error {
	w := p.open
	p.open = openWindow{}
	if len(w.rows) == 0 {
		return nil
	}
	window, hashes, err := audit.NewWindow(l.cfg.Origin, w.first, w.last, w.received, w.rows)
	if err != nil {
		return err
	}
	leaf, err := audit.EncodeWindow(window)
	if err != nil {
		return err
	}
	p.leaves = append(p.leaves, leaf)
	p.windows = append(p.windows, windowFiles{
		first: w.first, last: w.last, rows: audit.AppendRowHashes(nil, hashes), detail: bytes.Join(w.rows, nil),
	})
	return nil
}

// integrate hands the leaves to Tessera and waits until they are durable in the tree. ctx bounds the wait: a disk that hangs
// must not keep the process from ending.
func (l *Log) integrate(ctx context.Context, p *pass) error {
	done := make(chan error, 1)
	go func() { done <- l.addAll(p.leaves) }()
	select {
	case err := <-done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return fmt.Errorf("log: %d leaves: %w", len(p.leaves), ctx.Err())
	}
	l.size += uint64(len(p.leaves))
	p.size = l.size
	return nil
}

// addAll waits for every leaf, also after an error, so that nothing is under way when the caller looks at what reached the log.
func (l *Log) addAll(leaves [][]byte) error {
	futures := make([]tessera.IndexFuture, len(leaves))
	for i, leaf := range leaves {
		// Not ctx: Tessera gives up the whole batch with the context of its first leaf.
		futures[i] = l.add(context.Background(), tessera.NewEntry(leaf))
	}
	var first error
	for i, future := range futures {
		index, err := future()
		if first != nil {
			continue
		}
		if err != nil {
			first = fmt.Errorf("log: add leaf: %w", err)
		} else if want := l.size + uint64(i); index.Index != want {
			first = l.unsound("a leaf became number %d; expected %d: somebody else writes this log", index.Index, want)
		}
	}
	return first
}

// moveMark makes durable that everything up to p is in the log. The tree is read back rather than computed: what is marked is what is on disk.
func (l *Log) moveMark(p pass) error {
	tree, err := audit.Integrated(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("log %s: %w", l.cfg.Dir, err)
	}
	if uint64(tree.N) != p.size {
		return l.unsound("it has %d leaves; expected %d", tree.N, p.size)
	}
	m := mark{Origin: l.cfg.Origin, Seq: p.seq, Entry: p.entry, Size: p.size, Root: tree.Hash}
	if err := l.marks.store(m); err != nil {
		return err
	}
	l.at = m
	return nil
}

// age remembers the oldest act of the pass.
func (p *pass) age(ms int64) {
	if t := time.UnixMilli(ms); p.oldest.IsZero() || t.Before(p.oldest) {
		p.oldest = t
	}
}
