package line

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
)

// Errors of Reader, beside those of what it reads from.
var (
	ErrTooLong = errors.New("message is too long")
	ErrFraming = errors.New("neither JSON nor CBOR")
)

// Reader takes messages off a stream. Their form may change from one to the next.
type Reader struct {
	r   *bufio.Reader
	max int
	buf []byte
}

// NewReader reads messages of at most max bytes.
func NewReader(r io.Reader, max int) *Reader { return &Reader{r: bufio.NewReader(r), max: max} }

// Await waits for the first byte of a message; blanks and line ends before it are passed over.
func (r *Reader) Await() error {
	for {
		c, err := r.r.ReadByte()
		if err != nil {
			return err
		}
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		}
		return r.r.UnreadByte()
	}
}

// Next gives the next message, without its line end; the bytes hold until Next is called again. The error is ErrTooLong with whole set
// where the stream goes on behind the message, as it does behind a line; ErrTooLong or ErrFraming without it where nobody knows where the
// next message begins; io.ErrUnexpectedEOF for a message that is cut off; io.EOF at the end.
func (r *Reader) Next() (raw []byte, whole bool, err error) {
	if err := r.Await(); err != nil {
		return nil, false, err
	}
	r.buf = r.buf[:0]
	first, err := r.r.Peek(1)
	if err != nil {
		return nil, false, err
	}
	if IsCBOR(first) {
		return r.item(first[0])
	}
	return r.line()
}

func (r *Reader) line() (raw []byte, whole bool, err error) {
	long := false
	for {
		part, err := r.r.ReadSlice('\n')
		if long = long || len(r.buf)+len(part) > r.max+2; !long { // two: the line's end
			r.buf = append(r.buf, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && !long && json.Valid(r.buf):
			// A device that ends its stream without a line end has said all the same where its object ends.
		case errors.Is(err, io.EOF):
			return nil, false, io.ErrUnexpectedEOF
		case err != nil:
			return nil, false, err
		}
		break
	}
	raw = r.buf
	for n := len(raw); n > 0 && (raw[n-1] == '\n' || raw[n-1] == '\r'); n-- {
		raw = raw[:n-1]
	}
	if long || len(raw) > r.max {
		return nil, true, ErrTooLong
	}
	return raw, true, nil
}

func (r *Reader) item(first byte) (raw []byte, whole bool, err error) {
	if first>>5 != 5 && first>>5 != 6 { // a map, or a tag before it
		return nil, false, ErrFraming
	}
	var s scanner
	for {
		c, err := r.r.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return nil, false, io.ErrUnexpectedEOF
		case err != nil:
			return nil, false, err
		case len(r.buf) == r.max:
			return nil, false, ErrTooLong
		}
		r.buf = append(r.buf, c)
		if done, err := s.next(c); err != nil {
			return nil, false, ErrFraming
		} else if done {
			return r.buf, true, nil
		}
	}
}
