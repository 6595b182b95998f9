package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// MaxWindowRows bounds one window: its row hashes take 256 KB and a proof of one row 13 hashes.
const MaxWindowRows = 8192

// Window is the leaf over the publishes that one pass of the log's writer claimed: every publish of the journal from First to Last.
type Window struct {
	ID    EventID   `cbor:"1,keyasint"`
	Type  Type      `cbor:"2,keyasint"` // always "window"
	Time  int64     `cbor:"3,keyasint"` // Unix milliseconds: Received of the last row
	First uint64    `cbor:"4,keyasint"` // journal position of the first row
	Last  uint64    `cbor:"5,keyasint"` // journal position of the last row; positions between may belong to events
	Count uint64    `cbor:"6,keyasint"` // rows, 1 to MaxWindowRows
	Root  tlog.Hash `cbor:"7,keyasint"` // RFC 6962 root of the rows' CBOR, in order of the journal
	Extra Extra     `cbor:"-"`          // what a newer program added
}

// WindowID is the event id of the window over the journal's publishes first to last. It follows from the range alone, so that a
// writer that was killed between the log and its own mark recognises what it already wrote, and so that a window's files
// can be named before its leaf has an index.
func WindowID(origin string, first, last uint64) EventID {
	h := sha256.New()
	h.Write([]byte("wardlink/window/1\x00" + origin + "\x00"))
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], first)
	binary.BigEndian.PutUint64(b[8:], last)
	h.Write(b[:])
	return EventID(h.Sum(nil)[:16])
}

// NewWindow makes the window over rows, whose CBOR it takes in order of the journal, and gives the row hashes beside it.
func NewWindow(origin string, first, last uint64, received int64, rows [][]byte) (Window, []tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(rows))
	for i, row := range rows {
		hashes[i] = tlog.RecordHash(row)
	}
	w := Window{
		ID: WindowID(origin, first, last), Type: windowType, Time: received,
		First: first, Last: last, Count: uint64(len(rows)), Root: treeRoot(hashes),
	}
	return w, hashes, w.check()
}

// EncodeWindow gives the window leaf's bytes.
func EncodeWindow(w Window) ([]byte, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	data, err := encMode.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode window %s: %w", w.ID, err)
	}
	return withExtra(data, w.Extra)
}

// check holds for every window, both ways. That the id follows from the range is for the verifier to see, who knows the origin.
func (w Window) check() error {
	switch {
	case w.ID == (EventID{}):
		return errors.New("window: id is zero")
	case w.Type != windowType:
		return fmt.Errorf("window %s: type is %q", w.ID, w.Type)
	case w.Time < 0:
		return fmt.Errorf("window %s: time is negative", w.ID)
	case w.First == 0 || w.Last < w.First:
		return fmt.Errorf("window %s: journal range %d to %d", w.ID, w.First, w.Last)
	case w.Count == 0 || w.Count > MaxWindowRows || w.Count-1 > w.Last-w.First:
		return fmt.Errorf("window %s: %d rows between journal positions %d and %d", w.ID, w.Count, w.First, w.Last)
	}
	return nil
}

// Leaf is one entry of the log: exactly one of Event and Window is set.
type Leaf struct {
	Event  *Event
	Window *Window
}

// ID is the event id.
func (l Leaf) ID() EventID {
	if l.Window != nil {
		return l.Window.ID
	}
	return l.Event.ID
}

// Time is the server's clock in Unix milliseconds.
func (l Leaf) Time() int64 {
	if l.Window != nil {
		return l.Window.Time
	}
	return l.Event.Time
}

// DecodeLeaf reads the bytes of one log entry.
func DecodeLeaf(data []byte) (Leaf, error) {
	if len(data) > MaxLeaf {
		return Leaf{}, fmt.Errorf("leaf: %d bytes; at most %d allowed", len(data), MaxLeaf)
	}
	var kind struct {
		Type Type `cbor:"2,keyasint"`
	}
	// The peek is lenient about everything else; whichever kind it is, the strict decoder below has the last word.
	if err := extraMode.Unmarshal(data, &kind); err != nil {
		return Leaf{}, fmt.Errorf("leaf: not valid CBOR of this form: %w", err)
	}
	if kind.Type != windowType {
		ev, err := DecodeEvent(data)
		if err != nil {
			return Leaf{}, err
		}
		return Leaf{Event: &ev}, nil
	}
	w, extra, err := decodeMap[Window](data)
	if err != nil {
		return Leaf{}, fmt.Errorf("window: %w", err)
	}
	w.Extra = extra
	if err := w.check(); err != nil {
		return Leaf{}, err
	}
	return Leaf{Window: &w}, nil
}
