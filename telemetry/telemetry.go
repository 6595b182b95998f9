// Package telemetry holds what travels from a bedside device to the hospital: lanes, batches, messages, observations, the
// topics they are published on and the limits every reader of outside bytes enforces. WIRE.md is the byte-level specification;
// codec.go is its implementation.
package telemetry

import (
	"cmp"
	"encoding/hex"
	"fmt"
)

// Lane is a priority class of batches. The numeric values are part of the wire format and never change.
type Lane uint8

// The lanes, most urgent first. Self carries the agent's accounts of itself and is never evicted.
const (
	LaneAlarm    Lane = 0
	LaneVitals   Lane = 1
	LaneWaveform Lane = 2
	LaneSelf     Lane = 3

	// LaneCount is the number of lanes; every valid Lane is below it.
	LaneCount = 4
)

var laneNames = [LaneCount]string{"alarm", "vitals", "waveform", "self"}

// String is the lane's name as topics and tools print it.
func (l Lane) String() string {
	if int(l) < len(laneNames) {
		return laneNames[l]
	}
	return fmt.Sprintf("lane(%d)", uint8(l))
}

// ParseLane turns a lane's name back into the lane.
func ParseLane(name string) (Lane, error) {
	for i, n := range laneNames {
		if n == name {
			return Lane(i), nil
		}
	}
	return 0, fmt.Errorf("lane %q is unknown; expected alarm, vitals, waveform or self", name)
}

// Epoch is 128 random bits, new at every start of an agent. Batch numbers count from 0 within (epoch, lane).
type Epoch [16]byte

// String is the epoch in lower-case hex.
func (e Epoch) String() string { return hex.EncodeToString(e[:]) }

// ParseEpoch reads the 32 hex digits that String prints.
func ParseEpoch(s string) (Epoch, error) {
	var e Epoch
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(e) {
		return e, fmt.Errorf("epoch %q: expected 32 hex digits", s)
	}
	copy(e[:], b)
	return e, nil
}

// BatchID names one batch of one gateway for ever.
type BatchID struct {
	Epoch  Epoch
	Lane   Lane
	Number uint64
}

// String is epoch/lane/number.
func (id BatchID) String() string {
	return fmt.Sprintf("%s/%s/%d", id.Epoch, id.Lane, id.Number)
}

// Stamp is an instant by a gateway's two clocks. Order never rests on either; they exist so that the server can repair times.
type Stamp struct {
	Wall int64 // Unix milliseconds by the gateway's own wall clock, which may be wrong
	Mono int64 // milliseconds since the kernel booted (CLOCK_BOOTTIME), meaningful only together with Batch.Boot
}

// Batch is what one seal covers and one PUBLISH carries: messages or, on LaneSelf, a report.
type Batch struct {
	Boot     [16]byte // the kernel's boot id: Stamp.Mono values of one boot are comparable
	Messages []Message
	Report   *Report // alone, without messages
}

// Message is one message of a source, understood as far as we can. Source, Digest and Copy are its key within its gateway. Every text
// here and below is UTF-8; observations and waveforms stand in ascending order of Index, which no two things of a message share.
type Message struct {
	Source     string   // source id from the agent's configuration
	Digest     [32]byte // SHA-256 of the message's bytes as framed
	Copy       uint32   // n: 0 where control ids are unique, else a random number for each new message (WIRE.md, "Keys")
	Received   Stamp    // when the agent had the whole message
	Type       string   // MSH-9 as sent, e.g. "ORU^R01^ORU_R01"
	ControlID  string   // MSH-10
	Sender     string   // MSH-3, first component
	Processing string   // MSH-11, first component: P production, T training (test data), D debugging
	SentAt     string   // MSH-7 as sent
	Patient    Patient
	// Bed is the bed that the gateway's configuration binds the message's device to; "" when it binds it to none. It is the gateway's
	// word, not the device's: that is Patient.Location.
	Bed string

	Observations []Observation
	Waveforms    []Waveform

	// Raw is the whole message as it came when not all of it was understood, so that a mapping can be mended later; else nil.
	Raw      []byte
	Problems []Problem // what was not understood
}

// Patient is the subject as the device names it. Nothing here is demographic: names and birth dates are not taken from messages.
type Patient struct {
	ID        string // PID-3.1; "" when the device does not know its patient
	Authority string // PID-3.4 as sent ("HOSP^1.2.3^ISO" or "HOSP")
	Location  string // PV1-3 as sent (the bed)
	Visit     string // PV1-19.1
}

// Problem says what part of a message was not understood. It never holds a value.
type Problem struct {
	Where  string // "OBX[3]-6"
	Reason string // "unit is not known"
}

// Observation is one reading. Value is the text the device sent: it is never computed with, so never rounded.
type Observation struct {
	Index  uint32 // position of the OBX within the message, from 0; with Message's key it is the observation's key for ever
	Type   string // OBX-2: "NM", "ST", ...
	Code   Code
	Value  string // OBX-5 as sent; "" means no reading
	Unit   Unit
	SubID  string // OBX-4, the containment path MDS.VMD.CHAN.METRIC
	Limits string // OBX-7 as sent: alarm limits, not a reference range
	Flags  string // OBX-8 as sent, repetitions joined by "~"
	Status string // OBX-11: R, F, P, X, ...
	Time   string // device time as sent (OBX-14, else OBR-7, else MSH-7)
	At     int64  // Time in Unix milliseconds, read with the source's time zone where Time has none; 0 when unreadable
	Device string // OBX-18 as sent
	Bed    string // that Device is bound to; "": the message's
	Marks  Marks
}

// Code identifies what was measured.
type Code struct {
	MDC  uint32 // ISO/IEEE 11073-10101 code, partition * 65536 + term; 0 when the code is not of that system
	ID   string // OBX-3.1 as sent
	Name string // OBX-3.2 as sent
	Sys  string // OBX-3.3 as sent
}

// Unit is the unit as sent and, where it is known, in UCUM.
type Unit struct {
	Sent string // OBX-6 as sent
	UCUM string // "" when the sent unit is not known
}

// Marks are what the agent noticed about a reading; nothing is refused or dropped for them.
type Marks uint8

// The marks. The bits are part of the wire format.
const (
	MarkNoReading   Marks = 1 << 0 // no value, or a sentinel that stands for none
	MarkImplausible Marks = 1 << 1 // outside the hard plausibility range of codes
	MarkUnknownCode Marks = 1 << 2
	MarkUnknownUnit Marks = 1 << 3
	MarkTimeUnread  Marks = 1 << 4 // Time is missing or cannot be read
	MarkTimeUnsure  Marks = 1 << 5 // Time is a local one that the source's zone has twice or never, when its clocks are set; At is one hour out, perhaps

	// MarkQuarantined is the hospital's alone: the gateway was in quarantine. What a gateway sends under this bit does not count.
	MarkQuarantined Marks = 1 << 7
)

// Limits of everything that crosses a trust boundary. Readers check them before they allocate.
const (
	MaxMessage  = 64 << 10  // bytes of one source message
	MaxFrame    = 256 << 10 // bytes of one sealed batch
	MaxPlain    = 1 << 20   // bytes of one batch's CBOR once inflated
	MaxMessages = 4096      // messages of one batch
	MaxRows     = 65536     // observations of one batch, and waveforms
	MaxText     = 64 << 10  // bytes of one text field
	MaxExpanded = 16 << 20  // bytes of all texts of one batch, each counted wherever it stands once decoded
	MaxDocument = 64 << 10  // bytes of one down document or sealing record
	MaxReason   = 200       // bytes of a refusal's reason

	// MaxEncoded is what a frame leaves for an encoded batch: header 77, nonce 12, tag 16, hash 32.
	MaxEncoded = MaxFrame - 137
)

// BedOf is the bed of a reading of m that is bound to bed itself, or to none (""): the message's then.
func (m *Message) BedOf(bed string) string { return cmp.Or(bed, m.Bed) }
