// Package eventlog reads the log in which a machine's firmware wrote what it measured into the TPM while it booted, and replays it. It is pure
// and bounded; its input is a claim of a gateway. A log proves nothing by itself: what replays to PCRs that the TPM quoted tells which digests
// were extended, in which order. The texts beside them are the gateway's words, except where their hash is the digest.
//
// The formats: TCG PC Client Platform Firmware Profile 1.06, 10.2 (crypto agile), and the SHA-1 log before it (10.2.1, TCG_PCR_EVENT).
package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of a log, beside the caller's of its bytes.
const (
	maxEvents     = 4096
	maxAlgorithms = 8
	maxPCR        = 23
	maxDigest     = 64 // bytes; of SHA-512
)

// Log is a parsed log.
type Log struct {
	Events []Event
	SHA1   bool // the events have SHA-1 digests alone, and account for no PCR of the SHA-256 bank
}

// Event is one measurement, or an entry that is none (NoAction).
type Event struct {
	Index  int // position in the log, from 0; the header is 0 in a crypto-agile log
	PCR    int
	Type   Type
	Digest [32]byte // by SHA-256; zero in a SHA-1 log
	Data   []byte   // shares the log's memory
}

// The reasons why a log is none, one for each check.
var (
	ErrShort      = errors.New("event log: it ends within an event")
	ErrMany       = fmt.Errorf("event log: more than %d events", maxEvents)
	ErrPCR        = fmt.Errorf("event log: an event of a PCR above %d", maxPCR)
	ErrHeader     = errors.New("event log: the header is damaged")
	ErrAlgorithms = fmt.Errorf("event log: expected 1 to %d algorithms with digests of 1 to %d bytes, each once", maxAlgorithms, maxDigest)
	ErrNoSHA256   = errors.New("event log: it has no SHA-256 digests")
	ErrDigests    = errors.New("event log: an event does not have one digest of each algorithm of the header")
	ErrEmpty      = errors.New("event log: it has no events")
)

const (
	algSHA256  = 0x000b
	sizeSHA1   = 20
	signature3 = "Spec ID Event03\x00"
)

// reader takes bytes off a log; after the first that is missing nothing comes any more.
type reader struct {
	data  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.data) {
		r.short, r.data = true, nil
		return nil
	}
	out := r.data[:n:n]
	r.data = r.data[n:]
	return out
}

func (r *reader) u8() int {
	if b := r.take(1); b != nil {
		return int(b[0])
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// sized takes a field behind its 32-bit length, which may claim anything.
func (r *reader) sized() []byte {
	n := r.u32()
	if uint64(n) > uint64(len(r.data)) {
		return r.take(-1)
	}
	return r.take(int(n))
}

// Parse reads a whole log. The errors are those above.
func Parse(data []byte) (*Log, error) {
	if len(data) == 0 {
		return nil, ErrEmpty
	}
	r := &reader{data: data}
	first, err := legacy(r, 0)
	if err != nil {
		return nil, err
	}
	l := &Log{Events: []Event{first}, SHA1: true}
	var sizes []algorithm
	if first.Type == NoAction && bytes.HasPrefix(first.Data, []byte(signature3)) {
		l.SHA1 = false
		if sizes, err = header(first.Data); err != nil {
			return nil, err
		}
	}
	for len(r.data) > 0 {
		if len(l.Events) == maxEvents {
			return nil, ErrMany
		}
		var e Event
		if l.SHA1 {
			e, err = legacy(r, len(l.Events))
		} else {
			e, err = agile(r, len(l.Events), sizes)
		}
		if err != nil {
			return nil, err
		}
		l.Events = append(l.Events, e)
	}
	return l, nil
}

// legacy reads a TCG_PCR_EVENT, which a crypto-agile log begins with, too.
func legacy(r *reader, index int) (Event, error) {
	e := Event{Index: index}
	pcr := r.u32()
	e.Type = Type(r.u32())
	r.take(sizeSHA1)
	e.Data = r.sized()
	return e.checked(r, pcr)
}

func (e Event) checked(r *reader, pcr uint32) (Event, error) {
	switch {
	case r.short:
		return Event{}, ErrShort
	case pcr > maxPCR && (e.Type != NoAction || pcr != 0xffffffff): // what is not extended names no PCR in some logs
		return Event{}, ErrPCR
	}
	e.PCR = int(int32(pcr))
	return e, nil
}

// algorithm is one by which each event of a crypto-agile log has a digest.
type algorithm struct {
	id   uint16
	size int
}

// header reads a TCG_EfiSpecIDEvent.
func header(data []byte) (out []algorithm, err error) {
	r := &reader{data: data}
	r.take(len(signature3) + 4 + 4) // platform class; versions and the size of a UINTN
	n := r.u32()
	if r.short {
		return nil, ErrHeader
	}
	if n == 0 || n > maxAlgorithms {
		return nil, ErrAlgorithms
	}
	found := false
	for range n {
		a := algorithm{id: r.u16(), size: int(r.u16())}
		if r.short {
			return nil, ErrHeader
		}
		if a.size == 0 || a.size > maxDigest || a.id == algSHA256 && a.size != sha256.Size {
			return nil, ErrAlgorithms
		}
		for _, b := range out {
			if a.id == b.id {
				return nil, ErrAlgorithms
			}
		}
		found = found || a.id == algSHA256
		out = append(out, a)
	}
	r.take(r.u8()) // the vendor's words
	if r.short || len(r.data) > 0 {
		return nil, ErrHeader
	}
	if !found {
		return nil, ErrNoSHA256
	}
	return out, nil
}

// agile reads a TCG_PCR_EVENT2.
func agile(r *reader, index int, algorithms []algorithm) (Event, error) {
	e := Event{Index: index}
	pcr := r.u32()
	e.Type = Type(r.u32())
	n := r.u32()
	if !r.short && uint64(n) != uint64(len(algorithms)) {
		return Event{}, ErrDigests
	}
	var seen uint // a bit for each of algorithms
	for range algorithms {
		id := r.u16()
		if r.short {
			return Event{}, ErrShort
		}
		i := 0
		for i < len(algorithms) && algorithms[i].id != id {
			i++
		}
		if i == len(algorithms) || seen>>i&1 != 0 {
			return Event{}, ErrDigests
		}
		seen |= 1 << i
		if digest := r.take(algorithms[i].size); id == algSHA256 {
			copy(e.Digest[:], digest)
		}
	}
	e.Data = r.sized()
	return e.checked(r, pcr)
}

// Replay gives what the PCRs of the SHA-256 bank hold if exactly the log's events were extended.
func (l *Log) Replay() (values [maxPCR + 1][32]byte) {
	if len(l.Events) == 0 {
		return values
	}
	for i := 17; i <= 22; i++ { // until there is a dynamic launch (TCG PC Client Platform TPM Profile 1.05, 4.6.2)
		for j := range values[i] {
			values[i][j] = 0xff
		}
	}
	for _, e := range l.Events {
		if e.Type == NoAction {
			if locality, ok := startup(e); ok {
				values[0][31] = locality
			}
			continue
		}
		values[e.PCR] = extended(values[e.PCR], e.Digest)
	}
	return values
}

func extended(value, digest [32]byte) [32]byte { return sha256.Sum256(append(value[:], digest[:]...)) }

// startup reads the event by which firmware says from which locality TPM2_Startup came, which is what PCR 0 begins with (10.4.5.3).
func startup(e Event) (locality byte, ok bool) {
	const name = "StartupLocality\x00"
	if e.PCR == 0 && len(e.Data) == len(name)+1 && string(e.Data[:len(name)]) == name {
		return e.Data[len(name)], true
	}
	return 0, false
}

// Unaccounted names the first of the PCRs in selected, a bit for each, whose value is not what the log replays to; false when it accounts for
// all of them.
func (l *Log) Unaccounted(selected uint32, values [maxPCR + 1][32]byte) (pcr int, found bool) {
	replayed := l.Replay()
	for pcr := range values {
		if selected>>pcr&1 != 0 && replayed[pcr] != values[pcr] {
			return pcr, true
		}
	}
	return 0, false
}
