package telemetry

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrTooLarge is returned by Encode for a batch that is over a limit. The caller splits the batch; a single message that is still
// too large travels as RawOnly makes it, which always fits.
var ErrTooLarge = errors.New("batch is too large")

// Encode gives a batch's bytes as they are sealed: a codec byte, then the columnar CBOR of WIRE.md, deflated if that is smaller.
// The same batch gives the same bytes within one build of the program. Texts are UTF-8; each run of bytes that is not
// becomes "?", because a reading must never be lost for its device's character set (hl7 converts first).
//
// The error is ErrTooLarge over a limit; any other error is a fault of the caller (no message, observations out of order).
// It never holds a value of the batch.
func Encode(b Batch) ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("encode batch: %w", err)
	}
	plain := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(plain)
	plain.Reset()
	var wire any
	if b.Report != nil {
		wire = newWireReportBatch(&b)
	} else {
		wire = newWireBatch(&b)
	}
	if err := encoding.MarshalToBuffer(wire, plain); err != nil {
		return nil, fmt.Errorf("encode batch: %w", err)
	}
	if plain.Len() > MaxPlain {
		return nil, fmt.Errorf("encode batch: %d bytes of CBOR, at most %d: %w", plain.Len(), MaxPlain, ErrTooLarge)
	}
	out, err := pack(plain.Bytes())
	if err != nil {
		return nil, fmt.Errorf("encode batch: %w", err)
	}
	if len(out) > MaxEncoded {
		return nil, fmt.Errorf("encode batch: %d bytes, at most %d: %w", len(out), MaxEncoded, ErrTooLarge)
	}
	return out, nil
}

// Decode reads what Encode wrote. The bytes may come from anyone who could seal: sizes, counts, indexes and lengths are checked
// before they are used, and what Decode returns is within every limit that Encode enforces. Errors never hold a value of the batch.
//
// Texts of what is returned share memory: who keeps one for longer than the batch clones it.
func Decode(data []byte) (Batch, error) {
	plain := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(plain)
	plain.Reset()
	cborBytes, err := unpack(data, plain)
	if err != nil {
		return Batch{}, fmt.Errorf("decode batch: %w", err)
	}
	if isReport(cborBytes) {
		b, err := decodeReport(cborBytes)
		if err != nil {
			return Batch{}, fmt.Errorf("decode batch: %w", err)
		}
		return b, nil
	}
	var w wireBatch
	if err := readBatch(cborBytes, &w); err != nil {
		return Batch{}, fmt.Errorf("decode batch: %w", err)
	}
	b, err := w.batch()
	if err != nil {
		return Batch{}, fmt.Errorf("decode batch: %w", err)
	}
	if err := b.check(); err != nil {
		return Batch{}, fmt.Errorf("decode batch: %w", err)
	}
	return b, nil
}

// RawOnly is the form of a message that always encodes, for one whose understood form does not: the message as it came, and a
// problem that says so. raw is at most MaxMessage bytes.
func RawOnly(m Message, raw []byte) Message {
	m.Observations, m.Waveforms = nil, nil
	m.Raw = raw
	m.Problems = []Problem{{Where: "message", Reason: "too large to be carried as understood"}}
	return m
}

// A deflate writer is several hundred kilobytes and a buffer grows to a batch's size; both are used for microseconds.
var (
	buffers   = sync.Pool{New: func() any { return new(bytes.Buffer) }}
	deflaters = sync.Pool{New: func() any { return newDeflater() }}
	inflaters = sync.Pool{New: func() any { return flate.NewReader(bytes.NewReader(nil)) }}
)

func newDeflater() *flate.Writer {
	w, err := flate.NewWriter(io.Discard, flate.BestSpeed)
	if err != nil {
		panic(fmt.Sprintf("telemetry: deflate level: %v", err))
	}
	return w
}

// pack puts the codec byte before plain or before its deflated form, whichever is shorter.
func pack(plain []byte) ([]byte, error) {
	out := bytes.NewBuffer(make([]byte, 0, 1+len(plain)/2))
	out.WriteByte(codecDeflate)
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(out)
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("deflate: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("deflate: %w", err)
	}
	if out.Len() <= len(plain) {
		return out.Bytes(), nil
	}
	return append([]byte{codecPlain}, plain...), nil
}

// unpack gives the CBOR within data, using buf where it must be inflated. The result is valid until buf is used again.
func unpack(data []byte, buf *bytes.Buffer) ([]byte, error) {
	if len(data) < 2 || len(data) > MaxEncoded {
		return nil, fmt.Errorf("%d bytes; expected 2 to %d", len(data), MaxEncoded)
	}
	switch data[0] {
	case codecPlain:
		return data[1:], nil
	case codecDeflate:
		return inflate(data[1:], buf)
	}
	return nil, fmt.Errorf("codec %d is unknown; expected 0 (plain) or 1 (deflate)", data[0])
}

// inflate gives what data inflates to, in buf, which is empty.
func inflate(data []byte, buf *bytes.Buffer) ([]byte, error) {
	if out, ok := inflateAll(buf.AvailableBuffer(), data); ok {
		buf.Write(out) // it stands there already, unless it outgrew buf
		return buf.Bytes(), nil
	}
	return inflateStream(data, buf)
}

// inflateStream reads one byte more than it allows, so that a bomb is noticed at the limit and not at its end.
func inflateStream(data []byte, buf *bytes.Buffer) ([]byte, error) {
	in := bytes.NewReader(data)
	r := inflaters.Get().(io.ReadCloser)
	defer inflaters.Put(r)
	if err := r.(flate.Resetter).Reset(in, nil); err != nil {
		return nil, fmt.Errorf("inflate: %w", err)
	}
	n, err := buf.ReadFrom(io.LimitReader(r, MaxPlain+1))
	if err != nil {
		return nil, fmt.Errorf("inflate: %w", err)
	}
	if n > MaxPlain {
		return nil, fmt.Errorf("inflates to more than %d bytes", MaxPlain)
	}
	// The reader takes single bytes from a bytes.Reader, so what is left was never part of the stream.
	if in.Len() != 0 {
		return nil, fmt.Errorf("%d bytes follow the deflate stream", in.Len())
	}
	return buf.Bytes(), nil
}
