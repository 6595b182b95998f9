package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Refusal tells a gateway which batch the server refused and why. MQTT 3.1.1 cannot refuse a PUBLISH, so the server sends this at
// QoS 0 and closes; the gateway parks the batch and does not publish it again by itself.
type Refusal struct {
	Epoch  Epoch
	Lane   Lane
	Number uint64
	Reason string // 1 to MaxReason bytes of printable text for an operator; never PHI
}

type wireRefusal struct {
	Epoch  []byte `cbor:"1,keyasint"`
	Lane   uint8  `cbor:"2,keyasint"`
	Number uint64 `cbor:"3,keyasint"`
	Reason string `cbor:"4,keyasint"`
}

// EncodeRefusal gives the body of DocRefused. A reason that is too long is cut and what cannot be printed becomes "?": a refusal
// that could not be sent would let the gateway publish the same batch for ever.
func EncodeRefusal(r Refusal) ([]byte, error) {
	if r.Lane >= LaneCount {
		return nil, fmt.Errorf("encode refusal: lane %d; expected below %d", uint8(r.Lane), LaneCount)
	}
	if r.Number > math.MaxInt64 {
		return nil, fmt.Errorf("encode refusal: number %d is above 2^63-1", r.Number)
	}
	data, err := encoding.Marshal(wireRefusal{Epoch: r.Epoch[:], Lane: uint8(r.Lane), Number: r.Number, Reason: printable(r.Reason)})
	if err != nil {
		return nil, fmt.Errorf("encode refusal: %w", err)
	}
	return data, nil
}

// DecodeRefusal reads the body of DocRefused and accepts only the bytes that EncodeRefusal makes.
func DecodeRefusal(data []byte) (Refusal, error) {
	var w wireRefusal
	var r Refusal
	if len(data) > MaxDocument {
		return r, fmt.Errorf("decode refusal: %d bytes, at most %d", len(data), MaxDocument)
	}
	if err := unmarshal(data, &w); err != nil {
		return r, fmt.Errorf("decode refusal: %w", err)
	}
	if len(w.Epoch) != len(r.Epoch) {
		return r, fmt.Errorf("decode refusal: epoch has %d bytes; expected %d", len(w.Epoch), len(r.Epoch))
	}
	r = Refusal{Epoch: Epoch(w.Epoch), Lane: Lane(w.Lane), Number: w.Number, Reason: w.Reason}
	again, err := EncodeRefusal(r)
	if err != nil {
		return Refusal{}, fmt.Errorf("decode refusal: %w", err)
	}
	if !bytes.Equal(again, data) {
		return Refusal{}, errors.New("decode refusal: not as EncodeRefusal writes it")
	}
	return r, nil
}

// printable makes a reason that gateways can print: it must not be able to forge a line of a log or steer a terminal.
func printable(reason string) string {
	reason = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) || c == utf8.RuneError {
			return '?'
		}
		return c
	}, reason)
	if reason == "" {
		return "refused"
	}
	end := min(len(reason), MaxReason)
	for !utf8.ValidString(reason[:end]) { // never within a character
		end--
	}
	return reason[:end]
}
