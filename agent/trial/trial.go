// Package trial shows what a message would become, with the very code that an agent runs and nothing else of an agent: no
// configuration, no TPM, no server. It is for a person who looks at a device's messages, so values are part of what it gives;
// nothing here logs.
package trial

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"wardlink/agent/source"
	"wardlink/telemetry"
	"wardlink/telemetry/codes"
	"wardlink/telemetry/hl7"
)

// Report is what became of a file.
type Report struct {
	Messages     []Message `json:"messages"`
	Understood   int       `json:"understood"`         // messages of which everything was understood
	InPart       int       `json:"understood_in_part"` // messages that also travel as they came, for what was not understood
	Refused      int       `json:"refused"`            // messages that the device would have to mend: answered AR or CR
	Observations int       `json:"observations"`       //
	Waveforms    int       `json:"waveforms"`          // chunks of one channel's samples
}

// Message is one message, field by field.
type Message struct {
	Offset  int    `json:"offset"`            // byte of the file at which it, or its frame, begins
	Bytes   int    `json:"bytes"`             // its length without a frame
	Framed  bool   `json:"mllp"`              // it stood in an MLLP frame
	Form    string `json:"form,omitempty"`    // of a line socket's message: "JSON" or "CBOR"
	Refused string `json:"refused,omitempty"` // why it is not taken; "" when it is
	Answer  Answer `json:"answer"`

	Lane         string        `json:"lane,omitempty"`
	Type         string        `json:"type,omitempty"`          // MSH-9
	ControlID    string        `json:"control_id,omitempty"`    // MSH-10
	Sender       string        `json:"sender,omitempty"`        // MSH-3
	Processing   string        `json:"processing,omitempty"`    // MSH-11
	SentAt       string        `json:"sent_at,omitempty"`       // MSH-7 as sent
	Digest       string        `json:"sha256,omitempty"`        // with the source it is the message's key
	Encoded      int           `json:"encoded_bytes,omitempty"` // of a batch that holds this message alone, before it is sealed
	AsItCame     bool          `json:"kept_as_sent"`            // the whole message travels sealed beside what was understood
	Patient      Patient       `json:"patient"`
	Observations []Observation `json:"observations"`
	Waveforms    []Waveform    `json:"waveforms"`
	Problems     []Problem     `json:"problems"`
}

// Patient is whom the device names.
type Patient struct {
	ID        string `json:"id"`        // PID-3.1
	Authority string `json:"authority"` // PID-3.4
	Location  string `json:"location"`  // PV1-3
	Visit     string `json:"visit"`     // PV1-19
}

// Observation is one OBX segment: as sent, and as read.
type Observation struct {
	Index     uint32   `json:"index"` // of the OBX within its message, from 0
	Type      string   `json:"type"`  // OBX-2
	Code      Code     `json:"code"`
	Value     string   `json:"value"` // OBX-5 as sent
	Unit      Unit     `json:"unit"`
	Time      Time     `json:"time"`
	Status    string   `json:"status"`           // OBX-11
	Flags     string   `json:"flags,omitempty"`  // OBX-8
	Limits    string   `json:"limits,omitempty"` // OBX-7: alarm limits
	SubID     string   `json:"sub_id,omitempty"` // OBX-4
	Device    string   `json:"device,omitempty"` // OBX-18
	Marks     []string `json:"marks"`            // what was noticed, in words
	Judgement string   `json:"judgement"`        // "plausible", "implausible", "no reading", "no range", or "not judged"
	Range     *Range   `json:"range,omitempty"`  // against which it was judged
	FHIR      FHIR     `json:"fhir"`
}

// Code is what was measured.
type Code struct {
	Sent string `json:"sent"`           // OBX-3.1 to OBX-3.3 as sent
	MDC  uint32 `json:"mdc,omitempty"`  // ISO/IEEE 11073-10101, partition * 65536 + term
	Ref  string `json:"ref,omitempty"`  // its reference id, where the table has it
	Name string `json:"name,omitempty"` // its name for humans, where the table has it
}

// Unit is OBX-6.
type Unit struct {
	Sent string `json:"sent"`
	UCUM string `json:"ucum"` // "" when it is not known
}

// Time is the device's time of a reading.
type Time struct {
	Sent string     `json:"sent"`
	Read *time.Time `json:"read,omitempty"` // nil when it cannot be read
}

// Range is what is physically plausible.
type Range struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	UCUM string  `json:"ucum"`
}

// FHIR is how the hospital's FHIR interface will call the reading, as far as the table of codes says.
type FHIR struct {
	Text     string   `json:"text,omitempty"`
	LOINC    []string `json:"loinc,omitempty"`
	Category string   `json:"category,omitempty"`
	Profile  string   `json:"profile,omitempty"` // claimed when nothing about the reading is odd and its patient is known
}

// Problem is what was not understood, and the segment in which it stands.
type Problem struct {
	Where    string   `json:"where"`
	Reason   string   `json:"reason"`
	Segments []string `json:"segments,omitempty"` // as sent
}

// Answer is the acknowledgement that the device would get once the message is on disk.
type Answer struct {
	Code string `json:"code"` // MSA-1; "" when the device wants none
	Text string `json:"text,omitempty"`
	HL7  string `json:"hl7,omitempty"`
	Line string `json:"line,omitempty"` // of a line socket, in JSON also for CBOR
}

// ErrEmpty means that a file holds nothing.
var ErrEmpty = errors.New("the file is empty; expected HL7 v2 messages, in MLLP frames or one after the other")

// Read makes a report of a file's bytes. zone is that of device times which name none; now is when acknowledgements are written.
func Read(data []byte, zone *time.Location, now time.Time) (Report, error) {
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return Report{}, errors.New("the file is UTF-16, which no device sends: an editor has rewritten it; save it as UTF-8, or take the bytes as the device sent them")
	}
	pieces := cut(data)
	if len(pieces) == 0 {
		return Report{}, ErrEmpty
	}
	r := Report{Messages: make([]Message, 0, len(pieces))}
	for _, p := range pieces {
		r.add(read(p, zone, now))
	}
	return r, nil
}

func (r *Report) add(m Message) {
	switch {
	case m.Refused != "":
		r.Refused++
	case m.AsItCame:
		r.InPart++
	default:
		r.Understood++
	}
	r.Observations += len(m.Observations)
	r.Waveforms += len(m.Waveforms)
	r.Messages = append(r.Messages, m)
}

func read(p piece, zone *time.Location, now time.Time) Message {
	m := Message{Offset: p.offset, Bytes: len(p.raw), Framed: p.framed, Observations: []Observation{}, Waveforms: []Waveform{}, Problems: []Problem{}}
	u, err := hl7.Understand(p.raw, hl7.Options{Source: "trial", Zone: zone})
	switch {
	case p.refused != "":
		m.Refused = p.refused
	case errors.Is(err, hl7.ErrTooLong):
		m.Refused = source.RefusedLong
	case err != nil:
		m.Refused = source.RefusedHeader
	}
	if p.cut {
		return m
	}
	if m.Refused != "" {
		m.Answer = answer(hl7.Ack(p.raw, hl7.Reject, m.Refused, now))
		return m
	}
	m.Answer = answer(hl7.Ack(p.raw, hl7.Accept, "", now))
	m.fill(u, hl7.LaneOf(u), p.raw)
	segments := segmentsOf(p.raw)
	for i := range m.Problems {
		m.Problems[i].Segments = segments.at(m.Problems[i].Where)
	}
	m.encode(u, p.raw)
	return m
}

// fill takes what was understood of a message.
func (m *Message) fill(u telemetry.Message, lane telemetry.Lane, raw []byte) {
	m.Lane = lane.String()
	m.Type, m.ControlID, m.Sender, m.Processing, m.SentAt = u.Type, u.ControlID, u.Sender, u.Processing, u.SentAt
	m.Patient = Patient(u.Patient)
	digest := sha256.Sum256(raw)
	m.Digest = hex.EncodeToString(digest[:])
	m.AsItCame = u.Raw != nil
	for _, problem := range u.Problems {
		m.Problems = append(m.Problems, Problem{Where: problem.Where, Reason: problem.Reason})
	}
	for i := range u.Observations {
		o := observation(&u.Observations[i])
		if u.Patient.ID == "" {
			o.FHIR.Profile = "" // a profile wants a subject
		}
		m.Observations = append(m.Observations, o)
	}
	for i := range u.Waveforms {
		m.Waveforms = append(m.Waveforms, waveform(&u.Waveforms[i]))
	}
}

// encode measures the batch, and takes back what does not fit into one: the agent does the same.
func (m *Message) encode(u telemetry.Message, raw []byte) {
	encoded, err := telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{u}})
	if errors.Is(err, telemetry.ErrTooLarge) {
		bare := telemetry.RawOnly(u, raw)
		m.Observations, m.Waveforms, m.AsItCame = []Observation{}, []Waveform{}, true
		m.Problems = m.Problems[:0]
		for _, p := range bare.Problems {
			m.Problems = append(m.Problems, Problem{Where: p.Where, Reason: p.Reason})
		}
		encoded, err = telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{bare}})
	}
	if err != nil {
		m.Problems = append(m.Problems, Problem{Where: "message", Reason: "cannot be encoded: " + err.Error()})
	}
	m.Encoded = len(encoded)
}

func observation(o *telemetry.Observation) Observation {
	item, known := codes.For(o.Code.MDC, o.Unit.UCUM)
	out := Observation{
		Index: o.Index, Type: o.Type, Value: o.Value, Unit: Unit(o.Unit), Time: Time{Sent: o.Time},
		Status: o.Status, Flags: o.Flags, Limits: o.Limits, SubID: o.SubID, Device: o.Device,
		Code:  Code{Sent: joined(o.Code.ID, o.Code.Name, o.Code.Sys), MDC: o.Code.MDC},
		Marks: marks(o.Marks),
	}
	if o.Marks&telemetry.MarkTimeUnread == 0 {
		at := time.UnixMilli(o.At).UTC()
		out.Time.Read = &at
	}
	if known {
		out.Code.Ref, out.Code.Name = item.Ref, item.Name
		out.FHIR = naming(o, item)
		if !math.IsNaN(item.Low) {
			out.Range = &Range{Low: item.Low, High: item.High, UCUM: item.UCUM}
		}
	}
	out.Judgement = judgement(o, item, known)
	return out
}

// naming says how FHIR calls a reading. As there, a reading whose unit is not one of its measure carries no LOINC code, and nothing
// odd claims a profile.
func naming(o *telemetry.Observation, item codes.Item) FHIR {
	f := FHIR{Text: item.Name, Category: item.Category}
	misfit := o.Unit.UCUM != "" && item.Judge(0, o.Unit.UCUM) == codes.WrongUnit
	if misfit || o.Marks&telemetry.MarkUnknownUnit != 0 {
		return f
	}
	f.LOINC = item.LOINC
	if o.Marks&(telemetry.MarkImplausible|telemetry.MarkTimeUnread) == 0 && (o.Unit.UCUM == item.UCUM || o.Marks&telemetry.MarkNoReading != 0) {
		f.Profile = item.Profile
	}
	return f
}

func judgement(o *telemetry.Observation, item codes.Item, known bool) string {
	_, err := strconv.ParseFloat(o.Value, 64)
	switch {
	case o.Marks&telemetry.MarkNoReading != 0:
		return "no reading"
	case o.Marks&telemetry.MarkImplausible != 0:
		return "implausible"
	case !known || err != nil || o.Unit.UCUM == "":
		return "not judged"
	case math.IsNaN(item.Low):
		return "no range"
	}
	return "plausible"
}

// marks are the bits in words, in their order.
func marks(m telemetry.Marks) []string {
	words := []string{}
	for _, w := range []struct {
		bit  telemetry.Marks
		text string
	}{
		{telemetry.MarkNoReading, "no reading"}, {telemetry.MarkImplausible, "implausible"}, {telemetry.MarkUnknownCode, "code is not known"},
		{telemetry.MarkUnknownUnit, "unit is not known"}, {telemetry.MarkTimeUnread, "time cannot be read"},
		{telemetry.MarkTimeUnsure, "local time that its zone has twice or never, when clocks are set"},
	} {
		if m&w.bit != 0 {
			words = append(words, w.text)
			m &^= w.bit
		}
	}
	if m != 0 {
		words = append(words, fmt.Sprintf("mark %#x", uint8(m)))
	}
	return words
}

// joined puts components together again, without empty ones at the end.
func joined(parts ...string) string { return strings.TrimRight(strings.Join(parts, "^"), "^") }

// answer takes an acknowledgement apart; nil is one that the device does not want.
func answer(ack []byte) Answer {
	if ack == nil {
		return Answer{}
	}
	a := Answer{HL7: string(ack)}
	_, msa, found := bytes.Cut(ack, []byte("\rMSA"))
	if !found || len(msa) < 1 {
		return a
	}
	fields := bytes.Split(bytes.TrimRight(msa[1:], "\r"), msa[:1])
	a.Code = string(fields[0])
	if len(fields) > 2 {
		a.Text = string(fields[2])
	}
	return a
}
