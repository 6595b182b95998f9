package audit

import (
	"errors"
	"fmt"
	"math"
)

// CBOR's major types, as far as a row has them.
const (
	majorUint  = 0
	majorBytes = 2
	majorText  = 3
	majorArray = 4
)

// EncodeRow gives the row's deterministic CBOR, at most MaxRow bytes: the head of a publish's journal entry and its line in a
// window's detail.
func EncodeRow(r Row) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	return withExtra(appendRow(make([]byte, 0, 320), r), r.Extra)
}

// appendRow writes what encMode makes of a row, an array of eleven elements in the order of Row's fields. By hand, because there is a row for
// each publish, and the library's reflection took a sixth of a publish's whole CPU time. A test holds the two against each other.
func appendRow(b []byte, r Row) []byte {
	b = appendHead(b, majorArray, rowElements)
	b = append(appendHead(b, majorBytes, uint64(len(r.ID))), r.ID[:]...)
	b = append(appendHead(b, majorBytes, uint64(len(r.Session))), r.Session[:]...)
	b = append(appendHead(b, majorText, uint64(len(r.Gateway))), r.Gateway...)
	b = append(appendHead(b, majorBytes, uint64(len(r.Epoch))), r.Epoch[:]...)
	b = appendHead(b, majorUint, uint64(r.Lane))
	b = appendHead(b, majorUint, r.Number)
	b = append(appendHead(b, majorBytes, uint64(len(r.Frame))), r.Frame[:]...)
	b = appendHead(b, majorUint, uint64(r.Received)) // check has seen that it is not negative
	b = append(appendHead(b, majorText, uint64(len(r.Serial))), r.Serial...)
	b = append(appendHead(b, majorText, uint64(len(r.Peer))), r.Peer...)
	return append(appendHead(b, majorText, uint64(len(r.Verdict))), r.Verdict...)
}

// DecodeRow reads what EncodeRow wrote, by this program or by a newer one whose further elements are in Extra then.
func DecodeRow(data []byte) (Row, error) {
	known, extra, ok := splitRow(data)
	if !ok {
		known, extra = data, ""
	}
	r, err := readRow(known)
	if err != nil {
		return Row{}, fmt.Errorf("row: %w", err)
	}
	r.Extra = extra
	if err := r.check(); err != nil {
		return Row{}, err
	}
	return r, nil
}

// readRow reads what appendRow writes and refuses everything else, so that one act has one row hash. By hand as well: the log's writer reads
// each row that the endpoint has just written, and with the library that was a seventh of all of the server's CPU time. What the library
// takes and encodes to the same bytes again is what this takes: a test and a fuzz test hold the two against each other.
func readRow(data []byte) (r Row, err error) {
	if len(data) > MaxRow {
		return Row{}, fmt.Errorf("%d bytes; at most %d allowed", len(data), MaxRow)
	}
	in := elements{data: data, text: string(data)}
	if in.head(majorArray) != rowElements {
		return Row{}, fmt.Errorf("not an array of %d elements", rowElements)
	}
	in.fill(r.ID[:])
	in.fill(r.Session[:])
	r.Gateway = in.string()
	in.fill(r.Epoch[:])
	r.Lane = uint8(in.number(math.MaxUint8))
	r.Number = in.number(math.MaxUint64)
	in.fill(r.Frame[:])
	r.Received = int64(in.number(math.MaxInt64))
	r.Serial = in.string()
	r.Peer = in.string()
	r.Verdict = in.string()
	switch {
	case in.bad:
		return Row{}, fmt.Errorf("element %d is not a row's, or not in deterministic encoding", in.taken-1) // the array's head was the first
	case in.at != len(data):
		return Row{}, fmt.Errorf("%d bytes behind its end", len(data)-in.at)
	}
	return r, nil
}

// elements reads CBOR data items one after the other, in the shortest form and of one given kind each. Behind the first that is something
// else bad is set and nothing more is read: what is returned then means nothing.
type elements struct {
	data  []byte
	text  string // the same bytes: texts are parts of it, one allocation for all
	at    int
	taken int // items begun
	bad   bool
}

// head reads the head of an item of that major type and gives its argument.
func (e *elements) head(major byte) uint64 {
	if e.bad {
		return 0
	}
	e.taken++
	if e.at >= len(e.data) || e.data[e.at]>>5 != major {
		e.bad = true
		return 0
	}
	n, end, ok := readUint(e.data, e.at)
	e.at, e.bad = end, !ok
	return n
}

// number reads an unsigned integer of at most most.
func (e *elements) number(most uint64) uint64 {
	n := e.head(majorUint)
	e.bad = e.bad || n > most
	return n
}

// fill reads a byte string just as long as into.
func (e *elements) fill(into []byte) {
	if n := e.head(majorBytes); e.bad || n != uint64(len(into)) || n > uint64(len(e.data)-e.at) {
		e.bad = true
		return
	}
	e.at += copy(into, e.data[e.at:])
}

// string reads a text. Whether it is UTF-8, and short enough, is for check to see.
func (e *elements) string() string {
	n := e.head(majorText)
	if e.bad || n > uint64(len(e.data)-e.at) {
		e.bad = true
		return ""
	}
	text := e.text[e.at : e.at+int(n)]
	e.at += int(n)
	return text
}

// check holds for every row, both ways. Whether the lane is one of ours is not asked: a proof shows what was journaled.
func (r Row) check() error {
	if r.ID == (EventID{}) {
		return errors.New("row: id is zero")
	}
	if r.Gateway == "" || r.Verdict == "" {
		return fmt.Errorf("row %s: gateway and verdict are required", r.ID)
	}
	if r.Received < 0 {
		return fmt.Errorf("row %s: time is negative", r.ID)
	}
	err := checkTexts([]text{
		{"gateway", r.Gateway, maxName}, {"serial", r.Serial, maxShort}, {"peer", r.Peer, maxName}, {"verdict", r.Verdict, maxShort},
	})
	if err != nil {
		return fmt.Errorf("row %s: %w", r.ID, err)
	}
	return nil
}
