package telemetry

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// The versions of a batch, its first key. A reader refuses any other: it must not guess at what it would drop. Later versions have keys
// that earlier ones have not; a batch is of the least version that has its keys, so that as many readers as can be read it.
const (
	batchVersion = 1
	waveVersion  = 2
	bedVersion   = 3
	batchLatest  = bedVersion
)

// The codec bytes that lead an encoded batch. 2 is reserved for deflate with a preset dictionary.
const (
	codecPlain   = 0
	codecDeflate = 1
)

// wireBatch is a batch as it travels: one table per thing that repeats, and columns for what changes. WIRE.md, "Batch" and
// wire.cddl say what every key means; cddl_test.go holds these tags to the CDDL.
//
// A column has as many cells as its table has rows. Where every cell is the same it has one, and where every cell is zero or empty
// it is absent. A delta column holds differences to the row before (the first row: to zero), modulo 2^64.
type wireBatch struct {
	Version  uint64        `cbor:"1,keyasint"`
	Boot     []byte        `cbor:"2,keyasint"`
	Contexts []wireContext `cbor:"3,keyasint"`
	Messages wireMessages  `cbor:"4,keyasint"`
	Times    *wireTimes    `cbor:"5,keyasint,omitempty"`
	Series   []wireSeries  `cbor:"6,keyasint,omitempty"`
	Extras   []wireExtra   `cbor:"7,keyasint,omitempty"`

	Waveforms []wireWaveforms `cbor:"8,keyasint,omitempty"` // version 2
}

// needs is the least version that can say what the batch holds.
func (w *wireBatch) needs() uint64 {
	for i := range w.Contexts {
		if w.Contexts[i].Bed != "" {
			return bedVersion
		}
	}
	for i := range w.Series {
		if w.Series[i].Bed != "" {
			return bedVersion
		}
	}
	for i := range w.Waveforms {
		if w.Waveforms[i].Bed != "" {
			return bedVersion
		}
	}
	if len(w.Waveforms) > 0 {
		return waveVersion
	}
	return batchVersion
}

// wireContext is what the messages of one source about one patient share.
type wireContext struct {
	Source     string `cbor:"1,keyasint,omitempty"`
	Type       string `cbor:"2,keyasint,omitempty"`
	Sender     string `cbor:"3,keyasint,omitempty"`
	Processing string `cbor:"4,keyasint,omitempty"`
	Patient    string `cbor:"5,keyasint,omitempty"`
	Authority  string `cbor:"6,keyasint,omitempty"`
	Location   string `cbor:"7,keyasint,omitempty"`
	Visit      string `cbor:"8,keyasint,omitempty"`
	Bed        string `cbor:"9,keyasint,omitempty"` // version 3
}

// wireMessages is the table of messages; its row count is the length of Digests over 32.
type wireMessages struct {
	Digests    []byte   `cbor:"1,keyasint"`
	Context    []uint32 `cbor:"2,keyasint,omitempty"` // row of Contexts
	Copy       []uint32 `cbor:"3,keyasint,omitempty"`
	Wall       []int64  `cbor:"4,keyasint,omitempty"` // delta
	Mono       []int64  `cbor:"5,keyasint,omitempty"` // delta
	ControlIDs []string `cbor:"6,keyasint,omitempty"`
	SentAt     []string `cbor:"7,keyasint,omitempty"`
}

// wireTimes is the table of device times: the readings of one message nearly always share one.
type wireTimes struct {
	Texts []string `cbor:"1,keyasint"`           // never collapsed: its length is the row count
	At    []int64  `cbor:"2,keyasint,omitempty"` // delta
}

// wireSeries is the readings of one measurement of one context.
type wireSeries struct {
	MDC      uint32 `cbor:"1,keyasint,omitempty"`
	CodeID   string `cbor:"2,keyasint,omitempty"`
	CodeName string `cbor:"3,keyasint,omitempty"`
	CodeSys  string `cbor:"4,keyasint,omitempty"`
	UnitSent string `cbor:"5,keyasint,omitempty"`
	UCUM     string `cbor:"6,keyasint,omitempty"`
	Type     string `cbor:"7,keyasint,omitempty"`
	SubID    string `cbor:"8,keyasint,omitempty"`
	Limits   string `cbor:"9,keyasint,omitempty"`
	Device   string `cbor:"10,keyasint,omitempty"`

	Rows    uint32   `cbor:"11,keyasint,omitempty"` // absent: 1
	Message []int64  `cbor:"12,keyasint,omitempty"` // delta; row of Messages
	Index   []uint32 `cbor:"13,keyasint,omitempty"`
	Time    []int64  `cbor:"14,keyasint,omitempty"` // delta; row of Times
	Value   []string `cbor:"15,keyasint,omitempty"`
	Flags   []string `cbor:"16,keyasint,omitempty"`
	Status  []string `cbor:"17,keyasint,omitempty"`
	Marks   []byte   `cbor:"18,keyasint,omitempty"` // a byte string, one byte a cell

	Bed string `cbor:"26,keyasint,omitempty"` // version 3
}

// wireExtra is what few messages have: what was not understood.
type wireExtra struct {
	Message  uint32        `cbor:"1,keyasint"` // row of Messages; ascending over Extras
	Raw      []byte        `cbor:"2,keyasint,omitempty"`
	Problems []wireProblem `cbor:"3,keyasint,omitempty"`
}

type wireProblem struct {
	Where  string `cbor:"1,keyasint,omitempty"`
	Reason string `cbor:"2,keyasint,omitempty"`
}

var (
	encoding = newEncoding()
	decoding = newDecoding()
)

// newEncoding is RFC 8949's core deterministic encoding: the same value is always the same bytes.
func newEncoding() cbor.UserBufferEncMode {
	mode, err := cbor.CoreDetEncOptions().UserBufferEncMode()
	if err != nil {
		panic(fmt.Sprintf("telemetry: CBOR encoding options: %v", err))
	}
	return mode
}

// maxPairs is the most that a map of a batch has.
const maxPairs = 32

// newDecoding bounds what hostile bytes can make us allocate: the input is checked for well-formedness against these limits before
// any value is built, so a declared length must be backed by bytes (at most MaxPlain of them).
func newDecoding() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxArrayElements:  MaxRows,
		MaxMapPairs:       maxPairs,
		MaxNestedLevels:   8,
		UTF8:              cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		panic(fmt.Sprintf("telemetry: CBOR decoding options: %v", err))
	}
	return mode
}

// unmarshal reads CBOR into v. The library's own errors can quote what they met (a repeated key, a number); ours end up in logs and
// say only where and of what type it was.
func unmarshal(data []byte, v any) error {
	err := decoding.Unmarshal(data, v)
	var twice *cbor.DupMapKeyError
	var mistyped *cbor.UnmarshalTypeError
	switch {
	case errors.As(err, &twice):
		return errors.New("cbor: a map has a key twice")
	case errors.As(err, &mistyped):
		return fmt.Errorf("cbor: %s of type %s cannot be this %s", mistyped.StructFieldName, mistyped.GoType, mistyped.CBORType)
	}
	return err
}
