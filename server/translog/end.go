package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"wardlink/audit"
	"wardlink/server/journal"
)

// End is where a log ends that has no writer any more, and where in the journal its successor begins.
type End struct {
	Logged uint64 // by the log's own word the journal's entries up to here are its leaves
	Cursor uint64 // by the journal's word
	// Begin is where the successor begins: the journal's entries up to it are leaves of this log or of one before it, and Entry is the id of the
	// last of them.
	Begin uint64
	Entry audit.EventID
	// Apart says why log and journal are not of one moment; nil: they are. It wraps ErrUnsound.
	Apart error
}

// FindEnd looks where the log of cfg ends, for a successor, with a journal that was put back by other means than ours. It writes nothing. A log that
// does not hold together in itself is ErrUnsound, and so is one that is not this journal's; one that is ahead of the journal or behind it is an End
// with Apart:
//
//   - Behind: the journal knows of leaves that this log does not have. The successor begins behind those that it has, so that what the lost ones
//     held is logged again, as far as the journal still has it.
//   - Ahead: the journal went back, and may have grown again under the numbers of entries that it lost. Up to its cursor, which went back with it,
//     its entries are leaves for certain. What it had beyond that and has kept is logged twice, under the same ids: the acts of one pass.
func FindEnd(cfg Config) (e End, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return e, err
	}
	l := &Log{cfg: cfg}
	var known bool
	if l.marks, l.at, known, err = openMark(cfg.Dir); err != nil {
		return e, err
	}
	if !known {
		return e, fmt.Errorf("log %s: %w: its mark is gone", cfg.Dir, ErrMissing)
	}
	if err := l.checkSelf(); err != nil {
		return e, err
	}
	if e.Cursor, err = cfg.Journal.Resume(consumer); err != nil {
		return e, fmt.Errorf("log %s: %w", cfg.Dir, err)
	}
	e.Logged, e.Begin, e.Entry = l.at.Seq, l.at.Seq, l.at.Entry
	if _, err = l.checkJournal(); !errors.Is(err, ErrUnsound) {
		return e, err
	}
	e.Apart = err
	if e.Logged < e.Cursor {
		// The entry at the mark, if the journal still has it, says whether it is this log's journal. The cursor is beyond: nothing is waited for.
		return e, fits(context.Background(), cfg.Dir, cfg.Journal, l.at, l.at.Seq)
	}
	e.Begin = e.Cursor
	e.Entry, err = l.heldAt(e.Cursor)
	return e, err
}

// heldAt is the id of the journal's entry at seq, which must be in the log.
func (l *Log) heldAt(seq uint64) (id audit.EventID, err error) {
	foreign := func(why string) error {
		return l.unsound("nothing shows that the journal, which was logged up to %d, was ever this log's: %s; is this another server's database?", seq, why)
	}
	if seq == 0 {
		return id, foreign("its first entry was never logged")
	}
	entries, err := l.cfg.Journal.ReadHeads(seq, 1)
	if err != nil {
		return id, fmt.Errorf("log %s: read journal at %d: %w", l.cfg.Dir, seq, err)
	}
	if len(entries) == 0 || entries[0].Seq != seq {
		return id, foreign("it has no such entry")
	}
	e := entries[0]
	for data, err := range audit.Leaves(l.cfg.Dir, 0, l.at.Size) {
		if err != nil {
			return id, fmt.Errorf("log %s: %w", l.cfg.Dir, err)
		}
		leaf, err := audit.DecodeLeaf(data)
		if err != nil {
			return id, l.unsound("%v", err)
		}
		w := leaf.Window
		switch {
		case w == nil && leaf.Event.ID == e.ID:
			return e.ID, nil
		case w == nil || e.Kind != journal.KindPublish || seq < w.First || seq > w.Last:
			continue
		}
		same, err := l.sameRows(*w)
		if err != nil || same {
			return e.ID, err
		}
		break
	}
	return id, foreign("its entry " + e.ID.String() + " is in no leaf")
}

// sameRows says whether the journal has the rows of a window under their numbers.
func (l *Log) sameRows(w audit.Window) (bool, error) {
	var rows [][]byte
	for at := w.First; at <= w.Last && len(rows) <= audit.MaxWindowRows; {
		entries, err := l.cfg.Journal.ReadHeads(at, readEntries)
		if err != nil {
			return false, fmt.Errorf("log %s: read journal at %d: %w", l.cfg.Dir, at, err)
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			if at = e.Seq + 1; e.Seq <= w.Last && e.Kind == journal.KindPublish {
				rows = append(rows, bytes.Clone(e.Head))
			}
		}
	}
	if len(rows) == 0 || len(rows) > audit.MaxWindowRows {
		return false, nil
	}
	now, _, err := audit.NewWindow(l.cfg.Origin, w.First, w.Last, w.Time, rows)
	return err == nil && now.Root == w.Root, err
}

// SignRest has a log that nobody writes sign the leaves that it has beyond its checkpoint: its writer was killed before it could. No leaf is
// added. It returns once a checkpoint covers all, or with an error after cfg.Drain; the log's directory must be locked by nobody.
func SignRest(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	tree, err := audit.Integrated(cfg.Dir)
	if err != nil {
		return fmt.Errorf("log %s: %w", cfg.Dir, err)
	}
	if err := signed(cfg, uint64(tree.N)); err == nil {
		return nil
	}
	// Tessera signs what is integrated and has no checkpoint, as after each start.
	ctx, cancel := context.WithTimeout(ctx, cfg.Drain)
	defer cancel()
	routeKlog(cfg.Log)
	if _, _, err := openTessera(ctx, cfg); err != nil {
		return err
	}
	for sleep(ctx, watchInterval) {
		if err = signed(cfg, uint64(tree.N)); err == nil {
			return nil
		}
	}
	return err
}

// signed fails unless the log's checkpoint covers size leaves.
func signed(cfg Config, size uint64) error {
	text, err := os.ReadFile(filepath.Join(cfg.Dir, audit.CheckpointFile))
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	cp, err := audit.UnverifiedCheckpoint(text)
	if err == nil && cp.Size < size {
		err = fmt.Errorf("log %s: it has %d leaves and its checkpoint covers %d", cfg.Dir, size, cp.Size)
	}
	return err
}
