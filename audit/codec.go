package audit

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Limits of what the log holds. With all of them exhausted an event takes 38 KB, so that every valid event fits a leaf.
const (
	MaxLeaf   = 60 << 10 // bytes of one leaf; the tile format itself ends at 65,535
	MaxRow    = 1 << 10  // bytes of one row
	maxShort  = 64       // bytes of a type, an outcome, a serial, a verdict, a detail's key
	maxName   = 128      // bytes of a gateway or a peer
	maxActor  = 512      // bytes of an actor's id
	maxText   = 1 << 10  // bytes of a target, a reason, a detail's value
	maxDetail = 32       // keys of Detail
)

// windowType is the type text of a leaf that stands for publishes; no event may carry it.
const windowType Type = "window"

var (
	encMode = must(cbor.EncOptions{
		Sort:          cbor.SortCoreDeterministic,
		IndefLength:   cbor.IndefLengthForbidden,
		TagsMd:        cbor.TagsForbidden,
		NilContainers: cbor.NilContainerAsEmpty,
	}.EncMode())
	decMode = must(decOptions().DecMode())
	// extraMode reads one field of a leaf whose kind is not known yet, and steps over values that a newer program wrote: its limits
	// are what such a program must keep to.
	extraMode = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 8, MaxArrayElements: 1024, MaxMapPairs: 1024,
		IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
	}.DecMode())
)

// decOptions bound what a decoder allocates before a field is looked at. Nesting is 2 in fact (an event's actor or detail); 4 and 16
// are the least that the decoder's library lets one ask for.
func decOptions() cbor.DecOptions {
	return cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:   4,
		MaxArrayElements:  16,
		MaxMapPairs:       maxDetail,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}
}

// must is for the two modes above: their options are constants, so that an error is a mistake in this file.
func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// EncodeEvent gives the event's deterministic CBOR, at most MaxLeaf bytes: the head of its journal entry and its leaf in the log.
// An event without id, type or outcome, or over a limit, is an error.
func EncodeEvent(ev Event) ([]byte, error) {
	if err := ev.check(); err != nil {
		return nil, err
	}
	data, err := encMode.Marshal(ev)
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", ev.ID, err)
	}
	return withExtra(data, ev.Extra)
}

// DecodeEvent reads what EncodeEvent wrote, by this program or by a newer one whose additions are in Extra then. Known fields that
// would be encoded otherwise are refused, so that one act has one leaf hash.
func DecodeEvent(data []byte) (Event, error) {
	ev, extra, err := decodeMap[Event](data)
	if err != nil {
		return Event{}, fmt.Errorf("event: %w", err)
	}
	ev.Extra = extra
	if err := ev.check(); err != nil {
		return Event{}, err
	}
	return ev, nil
}

// decodeStrict decodes data into out and demands that encoding out again gives the same bytes. That refuses what CBOR allows
// beyond its deterministic form: long integers, unsorted keys, short byte strings that a Go array would pad.
func decodeStrict(data []byte, limit int, out any) error {
	if len(data) > limit {
		return fmt.Errorf("%d bytes; at most %d allowed", len(data), limit)
	}
	if err := decMode.Unmarshal(data, out); err != nil {
		return fmt.Errorf("not valid CBOR of this form: %w", err)
	}
	again, err := encMode.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode again: %w", err)
	}
	if !bytes.Equal(again, data) {
		return errors.New("not in deterministic encoding")
	}
	return nil
}

// check holds for every event, on its way in and on its way out: what cannot be written is not believed when it is read either.
func (ev Event) check() error {
	if ev.ID == (EventID{}) {
		return fmt.Errorf("event of type %q: id is zero", ev.Type)
	}
	switch ev.Outcome {
	case Success, Denied, Failed:
	default:
		return fmt.Errorf("event %s: outcome %q is unknown", ev.ID, ev.Outcome)
	}
	if ev.Type == "" || ev.Type == windowType {
		return fmt.Errorf("event %s: type %q is not an event's", ev.ID, ev.Type)
	}
	if ev.Time < 0 {
		return fmt.Errorf("event %s: time is negative", ev.ID)
	}
	if len(ev.Detail) > maxDetail {
		return fmt.Errorf("event %s: %d details; at most %d allowed", ev.ID, len(ev.Detail), maxDetail)
	}
	texts := []text{
		{"type", string(ev.Type), maxShort}, {"actor id", ev.Actor.ID, maxActor}, {"actor serial", ev.Actor.Serial, maxShort},
		{"peer", ev.Peer, maxName}, {"target", ev.Target, maxText}, {"reason", ev.Reason, maxText},
	}
	for key, value := range ev.Detail {
		texts = append(texts, text{"detail key", key, maxShort}, text{"detail value", value, maxText})
	}
	if err := checkTexts(texts); err != nil {
		return fmt.Errorf("event %s: %w", ev.ID, err)
	}
	return nil
}

// text is one field of text and the most bytes it may have.
type text struct {
	name, value string
	max         int
}

// checkTexts never repeats a value: it may be long, and it is what an outsider sent.
func checkTexts(texts []text) error {
	for _, t := range texts {
		if len(t.value) > t.max {
			return fmt.Errorf("%s has %d bytes; at most %d allowed", t.name, len(t.value), t.max)
		}
		if !utf8.ValidString(t.value) {
			return fmt.Errorf("%s is not UTF-8", t.name)
		}
	}
	return nil
}
