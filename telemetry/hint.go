package telemetry

import (
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// MaxHint is the longest time for which a server may ask a gateway to stay away. A hint is not signed: whoever forges one costs a
// gateway this, each time that it has let the gateway in.
const MaxHint = 10 * time.Minute

// Hint is the document "hint": the connection is about to end, and the gateway is asked to come back later than it would by itself, because
// the server stops or cannot take anything at present.
type Hint struct {
	After time.Duration // whole milliseconds, above 0, at most MaxHint
}

type wireHint struct {
	After uint32 `cbor:"1,keyasint"`
}

// EncodeHint is the document's body. A time beyond the bounds is brought within them.
func EncodeHint(h Hint) ([]byte, error) {
	return cbor.Marshal(wireHint{uint32(min(max(h.After, time.Millisecond), MaxHint).Milliseconds())})
}

// DecodeHint reads it. Keys that it does not know are of a later version and are left out; a longer time than MaxHint counts as that.
func DecodeHint(b []byte) (Hint, error) {
	var w wireHint
	if len(b) > 1024 {
		return Hint{}, fmt.Errorf("hint of %d bytes; expected at most 1024", len(b))
	}
	if err := cbor.Unmarshal(b, &w); err != nil {
		return Hint{}, fmt.Errorf("hint: %w", err)
	}
	if w.After == 0 {
		return Hint{}, fmt.Errorf("hint: no time is given")
	}
	return Hint{min(time.Duration(w.After)*time.Millisecond, MaxHint)}, nil
}
