package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"math"
)

// Resend asks a gateway for what a restored server may have lost: every batch that the gateway has delivered, still holds, and that is not
// named here. It is not signed, since all that it can bring about is that sealed batches are sent once more to who is on the line.
type Resend struct {
	Generation [16]byte // names the restore
	Held       []Held   // each epoch and lane at most once, the most recent first; of one that is not named the server has nothing
}

// Held are the numbers that a server has of one epoch and lane: ascending, no two runs touch.
type Held struct {
	Epoch Epoch
	Lane  Lane
	Runs  []Span
}

type wireResend struct {
	Generation []byte     `cbor:"1,keyasint"`
	Held       []wireHeld `cbor:"2,keyasint"`
}

type wireHeld struct {
	Epoch []byte   `cbor:"1,keyasint"`
	Lane  uint8    `cbor:"2,keyasint"`
	Runs  []uint64 `cbor:"3,keyasint"`
}

// EncodeResend gives the body of DocResend, at most MaxDocument bytes: what does not fit of the end of Held is left out, which costs batches
// sent that the server has.
func EncodeResend(r Resend) ([]byte, error) {
	w := wireResend{Generation: r.Generation[:], Held: []wireHeld{}}
	size := 64
	for _, h := range r.Held {
		if err := checkHeld(h); err != nil {
			return nil, fmt.Errorf("encode resend: %w", err)
		}
		one := wireHeld{Epoch: h.Epoch[:], Lane: uint8(h.Lane), Runs: make([]uint64, 0, 2*len(h.Runs))}
		for _, s := range h.Runs {
			one.Runs = append(one.Runs, s.First, s.Last)
		}
		if size += 32 + 18*len(h.Runs); size > MaxDocument { // more than it can take
			break
		}
		w.Held = append(w.Held, one)
	}
	data, err := encoding.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode resend: %w", err)
	}
	return data, nil
}

func checkHeld(h Held) error {
	if h.Lane >= LaneCount {
		return fmt.Errorf("lane %d; expected below %d", uint8(h.Lane), LaneCount)
	}
	for i, s := range h.Runs {
		if s.Last < s.First || s.Last > math.MaxInt64 || i > 0 && s.First <= h.Runs[i-1].Last+1 {
			return errors.New("runs of numbers must ascend, apart from each other, below 2^63")
		}
	}
	return nil
}

// DecodeResend reads the body of DocResend and accepts only the bytes that EncodeResend makes.
func DecodeResend(data []byte) (Resend, error) {
	var w wireResend
	var r Resend
	if len(data) > MaxDocument {
		return r, fmt.Errorf("decode resend: %d bytes, at most %d", len(data), MaxDocument)
	}
	if err := unmarshal(data, &w); err != nil {
		return r, fmt.Errorf("decode resend: %w", err)
	}
	if len(w.Generation) != len(r.Generation) {
		return r, fmt.Errorf("decode resend: generation has %d bytes; expected %d", len(w.Generation), len(r.Generation))
	}
	r.Generation = [16]byte(w.Generation)
	type stream struct {
		epoch Epoch
		lane  uint8
	}
	known := map[stream]bool{}
	for _, h := range w.Held {
		if len(h.Epoch) != len(Epoch{}) || len(h.Runs)%2 != 0 {
			return Resend{}, errors.New("decode resend: expected an epoch of 16 bytes and pairs of numbers")
		}
		one := Held{Epoch: Epoch(h.Epoch), Lane: Lane(h.Lane)}
		if known[stream{one.Epoch, h.Lane}] {
			return Resend{}, errors.New("decode resend: an epoch's lane is named twice")
		}
		known[stream{one.Epoch, h.Lane}] = true
		for i := 0; i < len(h.Runs); i += 2 {
			one.Runs = append(one.Runs, Span{First: h.Runs[i], Last: h.Runs[i+1]})
		}
		if err := checkHeld(one); err != nil {
			return Resend{}, fmt.Errorf("decode resend: %w", err)
		}
		r.Held = append(r.Held, one)
	}
	again, err := EncodeResend(r)
	if err != nil {
		return Resend{}, fmt.Errorf("decode resend: %w", err)
	}
	if !bytes.Equal(again, data) {
		return Resend{}, errors.New("decode resend: not as EncodeResend writes it")
	}
	return r, nil
}
