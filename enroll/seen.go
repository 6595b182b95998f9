package enroll

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// SeenPath is where the gateways' port tells a gateway, known by its certificate, when the hospital saw its heartbeats.
const SeenPath = "/seen"

// MaxSeenBytes bounds the answer.
const MaxSeenBytes = 4 << 10

// Seen is when the hospital saw a gateway's heartbeats: its reports of itself, opened, by the hospital's clock. Times are zero while
// there was none.
type Seen struct {
	Gateway string    `json:"gateway"`
	First   time.Time `json:"first,omitzero"`  // receipt of the first heartbeat that it ever sent
	Last    time.Time `json:"last,omitzero"`   // receipt of the newest
	Epoch   string    `json:"epoch,omitempty"` // of the newest: hexadecimal of 128 bits
}

// ParseSeen reads the answer and checks that it is about this gateway. Unknown fields are ignored: nothing is decided by them.
func ParseSeen(data []byte, gateway string) (Seen, error) {
	if len(data) > MaxSeenBytes {
		return Seen{}, fmt.Errorf("seen: %d bytes; at most %d", len(data), MaxSeenBytes)
	}
	var s Seen
	if err := json.Unmarshal(data, &s); err != nil {
		return Seen{}, fmt.Errorf("seen: %w", err)
	}
	if s.Gateway != gateway {
		return Seen{}, fmt.Errorf("seen: it is about gateway %.64q, this is %q", s.Gateway, gateway)
	}
	if raw, err := hex.DecodeString(s.Epoch); err != nil || len(raw) != 16 && len(raw) != 0 {
		return Seen{}, errors.New("seen: epoch: expected 32 hexadecimal digits")
	}
	if s.First.IsZero() != s.Last.IsZero() || s.First.IsZero() != (s.Epoch == "") {
		return Seen{}, errors.New("seen: a first heartbeat without a last, or without its epoch")
	}
	return s, nil
}
