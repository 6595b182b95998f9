package client

import (
	"encoding/binary"
	"errors"
	"fmt"

	"wardlink/telemetry"
)

// Limits of one upload of a dead gateway's card.
const (
	MaxSalvageItems = 1024    // frames, and as many sealing records
	MaxSalvageBytes = 4 << 20 // of the whole body
)

// salvageMagic begins an upload; the 1 is its version.
const salvageMagic = "wardlink salvage 1\n"

// Kinds of an upload's items.
const (
	salvageEnd     = 0
	salvageSealing = 1
	salvageFrame   = 2
)

// SalvageUpload is the body of POST /v1/gateways/{id}/salvage: signed sealing records and the frames that need them, as they are on the
// card. The bytes are ../SALVAGE.md's.
type SalvageUpload struct {
	Sealings [][]byte
	Frames   [][]byte
}

// Encode gives the upload's bytes.
func (u SalvageUpload) Encode() []byte {
	out := []byte(salvageMagic)
	for _, s := range u.Sealings {
		out = appendItem(out, salvageSealing, s)
	}
	for _, f := range u.Frames {
		out = appendItem(out, salvageFrame, f)
	}
	return append(out, salvageEnd)
}

func appendItem(out []byte, kind byte, data []byte) []byte {
	return append(binary.BigEndian.AppendUint32(append(out, kind), uint32(len(data))), data...)
}

// ParseSalvage reads what Encode wrote, which anybody with an operator's certificate can send. The slices are data's own.
func ParseSalvage(data []byte) (u SalvageUpload, err error) {
	if len(data) > MaxSalvageBytes {
		return u, fmt.Errorf("salvage upload: %d bytes; at most %d", len(data), MaxSalvageBytes)
	}
	if len(data) < len(salvageMagic) || string(data[:len(salvageMagic)]) != salvageMagic {
		return u, fmt.Errorf("salvage upload: it does not begin with %q: tool and server are of different versions", salvageMagic)
	}
	for at := len(salvageMagic); at < len(data); {
		kind := data[at]
		if kind == salvageEnd {
			if at+1 != len(data) {
				return SalvageUpload{}, fmt.Errorf("salvage upload: %d bytes follow its end", len(data)-at-1)
			}
			return u, nil
		}
		if len(data)-at < 5 {
			break
		}
		n, least, most, to := uint64(binary.BigEndian.Uint32(data[at+1:])), uint64(1), uint64(telemetry.MaxFrame), &u.Frames
		switch kind {
		case salvageSealing:
			most, to = telemetry.MaxDocument, &u.Sealings
		case salvageFrame:
		default:
			return SalvageUpload{}, fmt.Errorf("salvage upload: an item of kind %d at byte %d", kind, at)
		}
		switch {
		case n < least || n > most:
			return SalvageUpload{}, fmt.Errorf("salvage upload: an item of %d bytes at byte %d; expected %d to %d", n, at, least, most)
		case n > uint64(len(data)-at-5):
			return SalvageUpload{}, errCut
		case len(*to) == MaxSalvageItems:
			return SalvageUpload{}, fmt.Errorf("salvage upload: more than %d items of one kind", MaxSalvageItems)
		}
		*to = append(*to, data[at+5:at+5+int(n)])
		at += 5 + int(n)
	}
	return SalvageUpload{}, errCut
}

var errCut = errors.New("salvage upload: it is cut off before its end")

// SalvageAnswer says what became of an upload.
type SalvageAnswer struct {
	Gateway string `json:"gateway"`
	Event   string `json:"event"` // id of its event in the log
	// Frames is what became of each frame, in their order: "" journaled now, SalvageHere, or why it was refused.
	Frames   []string `json:"frames"`
	Sealings []string `json:"sealings"` // why a sealing record was refused, else ""
}

// SalvageHere: the batch was journaled earlier.
const SalvageHere = "here"

// HeldAnswer is what the server has of a gateway's batches.
type HeldAnswer struct {
	Gateway string       `json:"gateway"`
	State   string       `json:"state"`
	Streams []HeldStream `json:"streams"`
}

// HeldStream are numbers of one epoch and lane, as runs, both ends included.
type HeldStream struct {
	Epoch string      `json:"epoch"` // hexadecimal
	Lane  string      `json:"lane"`
	Runs  [][2]uint64 `json:"runs"`
}
