package hl7

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// The bytes of the minimal lower layer protocol (HL7 v2, transport specification MLLP release 1): <VT> message <FS><CR>.
const (
	vt = 0x0b
	fs = 0x1c
	cr = '\r'
)

var (
	// ErrTooLong means that a message, or what stands between two messages, is longer than the reader allows. The reader drops what
	// follows up to the next start of a frame, and goes on there; unless Lost says that too much has come without one.
	ErrTooLong = errors.New("message is longer than allowed")
	// ErrFraming means that bytes came which are no MLLP frame. The reader goes on at the next start of a frame.
	ErrFraming = errors.New("no MLLP frame; expected <VT>message<FS><CR>")
)

// Reader takes MLLP frames from a stream. It holds at most one message and a buffer of 4 KiB.
type Reader struct {
	br       *bufio.Reader
	max      int  // bytes of a message, and of what is dropped at a time before the first
	skipping bool // after a fault of framing: everything up to the next <VT> is dropped, silently, since it was reported
	skipped  int
	room     int // how much may be skipped
	dead     error
}

// NewReader reads from r messages of at most max bytes, their frame not counted.
func NewReader(r io.Reader, max int) *Reader {
	return &Reader{br: bufio.NewReaderSize(r, 4096), max: max}
}

// longest is how many times as long as allowed an over-long message may be and still be dropped whole.
const longest = 16

// Lost tells that the reader gives nothing more: too much came without a frame's start.
func (r *Reader) Lost() bool { return r.dead != nil }

// Await blocks until a byte of the next frame (or of what should be one) has come. It lets a caller give the wait between messages
// and the wait within a message different deadlines.
func (r *Reader) Await() error {
	if r.dead != nil {
		return r.dead
	}
	for {
		if _, err := r.br.Peek(1); err != nil {
			return err
		}
		b, _ := r.br.Peek(r.br.Buffered())
		n := 0
		for n < len(b) && b[n] != vt && (r.skipping || isBlank(b[n])) {
			n++
		}
		_, _ = r.br.Discard(n) // n bytes are buffered
		// Counted before the next start of a frame is looked at, so that nothing depends on how the bytes arrive.
		if r.skipped += n; r.skipped > max(r.room, r.max) {
			r.dead = ErrTooLong
			return r.dead
		}
		if n < len(b) {
			return nil
		}
	}
}

// isBlank tells the bytes that harmlessly stand between frames: line ends after <FS><CR>, keep-alive spaces and NULs.
func isBlank(b byte) bool { return b == '\r' || b == '\n' || b == ' ' || b == '\t' || b == 0 }

// Next is the next message, without its frame; the slice is the caller's. io.EOF means that the stream ended between messages,
// io.ErrUnexpectedEOF that it ended within one. With ErrTooLong and ErrFraming the bytes read so far come too: only good for
// addressing the refusal.
//
// A message ends at <FS><CR> and nowhere else: to end it at a lone <FS> could acknowledge half a message as if it were whole.
func (r *Reader) Next() ([]byte, error) {
	if err := r.Await(); err != nil {
		return nil, err
	}
	first, err := r.br.ReadByte()
	if err != nil {
		return nil, err
	}
	if first != vt {
		b, _ := r.br.Peek(r.br.Buffered())
		if i := bytes.IndexByte(b, vt); i >= 0 {
			b = b[:i]
		}
		head := append([]byte{first}, b...)
		_, _ = r.br.Discard(len(b))
		r.skipping = true
		r.skipped += len(head) // how much of it had come yet must not count
		return head, ErrFraming
	}
	r.skipping, r.skipped, r.room = false, 0, 0
	return r.body()
}

// body reads what follows <VT>.
func (r *Reader) body() ([]byte, error) {
	msg := []byte{}
	for {
		if _, err := r.br.Peek(1); err != nil {
			return msg, cut(err)
		}
		b, _ := r.br.Peek(r.br.Buffered())
		end := bytes.IndexByte(b, fs)
		again := bytes.IndexByte(b, vt)
		switch {
		case again >= 0 && (end < 0 || again < end):
			end = again
		case end < 0:
			end, again = len(b), -1
		default:
			again = -1
		}
		if len(msg)+end > r.max {
			r.skipping, r.room = true, longest*r.max
			fits := r.max - len(msg)
			msg = append(msg, b[:fits]...)
			_, _ = r.br.Discard(fits)
			return msg, ErrTooLong
		}
		whole := again < 0 && end < len(b)
		msg = append(msg, b[:end]...)
		_, _ = r.br.Discard(end)
		if again >= 0 { // the sender began anew: what came before was cut off and is not a message
			return msg, ErrFraming
		}
		if !whole {
			continue
		}
		_, _ = r.br.Discard(1)
		last, err := r.br.ReadByte()
		if err != nil {
			return msg, cut(err)
		}
		if last == cr {
			return msg, nil
		}
		_ = r.br.UnreadByte() // the byte just read
		r.skipping = true
		return msg, ErrFraming
	}
}

// cut says that a stream ended where it must not.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteFrame writes one message in its frame, in one Write. A message that holds bytes of the framing is refused: the peer would
// read two.
func WriteFrame(w io.Writer, msg []byte) error {
	if bytes.IndexByte(msg, vt) >= 0 || bytes.IndexByte(msg, fs) >= 0 {
		return fmt.Errorf("write MLLP frame: message holds a byte of the framing (<VT> or <FS>)")
	}
	frame := make([]byte, 0, len(msg)+3)
	frame = append(frame, vt)
	frame = append(frame, msg...)
	frame = append(frame, fs, cr)
	_, err := w.Write(frame)
	return err
}
