package audit

import (
	"fmt"
	"iter"
	"strings"
)

// Filter chooses what List gives. Zero fields choose everything.
type Filter struct {
	Type      Type    // of events; "window" chooses windows
	Actor     string  // an event's actor id, whole
	Gateway   string  // events by or upon this gateway; rows of it
	Outcome   Outcome // of events
	Reason    string  // part of an event's reason, in any case of its letters
	From, To  int64   // Unix milliseconds: From <= time < To
	Limit     int     // at most so many items
	Newest    bool    // newest leaf first; the default is the log's order
	Publishes bool    // give the rows of windows instead of the windows
}

// Item is one line of a listing. Exactly one of Event, Window and Row is set.
type Item struct {
	Index    uint64 // of the leaf
	RowIndex uint64 // of the row within its window
	Event    *Event
	Window   *Window
	Row      *Row
}

// Time is the server's clock in Unix milliseconds.
func (it Item) Time() int64 {
	switch {
	case it.Row != nil:
		return it.Row.Received
	case it.Window != nil:
		return it.Window.Time
	}
	return it.Event.Time
}

// List gives the published leaves of the log in dir that f chooses, one entry bundle in memory at a time. It checks no signature
// and no hash: Verify does. Windows whose rows were not kept give no rows. An error ends the sequence.
func List(dir string, f Filter) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		d := openDir(dir)
		signed, err := d.read(CheckpointFile, maxCheckpoint)
		if err != nil {
			yield(Item{}, fmt.Errorf("checkpoint: %w; expected the directory of a log", err))
			return
		}
		cp, err := UnverifiedCheckpoint(signed)
		if err != nil {
			yield(Item{}, err)
			return
		}
		given := 0
		for it, err := range d.items(cp.Size, f) {
			if err != nil {
				yield(Item{}, err)
				return
			}
			if !f.chooses(it) {
				continue
			}
			if !yield(it, nil) {
				return
			}
			if given++; f.Limit > 0 && given >= f.Limit {
				return
			}
		}
	}
}

// items gives the first size leaves in the order f wants, windows opened up if it wants publishes.
func (d logDir) items(size uint64, f Filter) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		for index, data := range d.entries(size, f.Newest) {
			if data.err != nil {
				yield(Item{}, data.err)
				return
			}
			leaf, err := DecodeLeaf(data.leaf)
			if err != nil {
				yield(Item{}, fmt.Errorf("leaf %d: %w", index, err))
				return
			}
			if leaf.Window == nil || !f.Publishes {
				if !yield(Item{Index: index, Event: leaf.Event, Window: leaf.Window}, nil) {
					return
				}
				continue
			}
			if f.Type != "" {
				continue // no row has a type
			}
			if !d.yieldRows(index, *leaf.Window, f.Newest, yield) {
				return
			}
		}
	}
}

// yieldRows gives a window's rows, checked against the leaf on the way, and reports whether the sequence goes on.
func (d logDir) yieldRows(index uint64, w Window, newest bool, yield func(Item, error) bool) bool {
	hashes, err := d.rowHashes(w)
	var rows []Row
	if err == nil {
		_, rows, err = d.rows(w, hashes)
		if isNotExist(err) {
			return true
		}
	}
	if err != nil {
		yield(Item{}, fmt.Errorf("leaf %d: %w", index, err))
		return false
	}
	for i := range rows {
		if newest {
			i = len(rows) - 1 - i
		}
		if !yield(Item{Index: index, RowIndex: uint64(i), Row: &rows[i]}, nil) {
			return false
		}
	}
	return true
}

// entry is a leaf's bytes or why they cannot be had.
type entry struct {
	leaf []byte
	err  error
}

// entries gives the first size leaves with their index, forward or backward.
func (d logDir) entries(size uint64, backward bool) iter.Seq2[uint64, entry] {
	return func(yield func(uint64, entry) bool) {
		bundles := (size + tileWidth - 1) / tileWidth
		for i := range bundles {
			n := i
			if backward {
				n = bundles - 1 - i
			}
			width := int(min(size-n*tileWidth, tileWidth))
			leaves, err := d.bundle(n, width)
			if err != nil {
				yield(n*tileWidth, entry{err: err})
				return
			}
			for j := range leaves {
				if backward {
					j = len(leaves) - 1 - j
				}
				if !yield(n*tileWidth+uint64(j), entry{leaf: leaves[j]}) {
					return
				}
			}
		}
	}
}

// Leaves gives the bytes of all leaves of the log in dir from index from on, for the log's own writer. size is what the writer has
// integrated, published or not: bundles are named by it. Leaves checks nothing.
func Leaves(dir string, from, size uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		d := openDir(dir)
		for from < size {
			n := from / tileWidth
			leaves, err := d.bundle(n, int(min(size-n*tileWidth, tileWidth)))
			if err != nil {
				yield(nil, err)
				return
			}
			for _, leaf := range leaves[from%tileWidth:] {
				if !yield(leaf, nil) {
					return
				}
				from++
			}
		}
	}
}

// chooses applies what does not depend on the order of the log. A window has neither actor nor gateway, outcome nor reason.
func (f Filter) chooses(it Item) bool {
	if t := it.Time(); t < f.From || (f.To != 0 && t >= f.To) {
		return false
	}
	ofEvents := f.Actor != "" || f.Outcome != "" || f.Reason != ""
	switch {
	case it.Row != nil:
		return !ofEvents && (f.Gateway == "" || f.Gateway == it.Row.Gateway)
	case it.Window != nil:
		return !ofEvents && f.Gateway == "" && (f.Type == "" || f.Type == windowType)
	}
	return (f.Type == "" || f.Type == it.Event.Type) &&
		(f.Actor == "" || f.Actor == it.Event.Actor.ID) &&
		(f.Outcome == "" || f.Outcome == it.Event.Outcome) &&
		(f.Reason == "" || strings.Contains(strings.ToLower(it.Event.Reason), strings.ToLower(f.Reason))) &&
		(f.Gateway == "" || it.Event.concerns(f.Gateway))
}

// concerns reports whether the event was done by the gateway or upon it.
func (ev Event) concerns(gateway string) bool {
	return ev.Target == gateway || strings.HasSuffix(ev.Actor.ID, "/gateway/"+gateway)
}
