package ingest

import (
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/telemetry/seal"
)

// bearer is who brings a gateway's batches: the gateway itself, or an operator with its card.
type bearer struct {
	gateway string
	session audit.EventID
	actor   audit.Actor
	peer    string
	verdict string
}

// judge says why a whole frame may not be committed, "" when it may: lanes are those allowed to its gateway, s is its sealing record if that
// was brought, with it or before it.
func judge(frame seal.Header, lanes uint8, s sealing, brought bool) (reason string) {
	switch {
	case lanes>>frame.Lane&1 == 0:
		return reasonLane
	case !brought:
		return reasonSealing
	case s.epoch != frame.Epoch || s.key != frame.Key:
		return reasonSealingEpoch
	}
	return ""
}

// publish is the journal entry of a frame that was judged; hash is that of the whole payload.
func (b bearer) publish(id audit.EventID, frame seal.Header, hash [32]byte, payload []byte, received time.Time) (journal.Entry, error) {
	head, err := audit.EncodeRow(audit.Row{
		ID: id, Session: b.session, Gateway: b.gateway, Epoch: frame.Epoch, Lane: uint8(frame.Lane), Number: frame.Number,
		Frame: hash, Received: received.UnixMilli(), Serial: b.actor.Serial, Peer: b.peer, Verdict: b.verdict,
	})
	if err != nil {
		return journal.Entry{}, fmt.Errorf("%w: audit row: %w", errFault, err)
	}
	return journal.Entry{ID: id, Kind: journal.KindPublish, Head: head, Blob: payload}, nil
}

// parseSealing reads a signed sealing record, for routing only: records verifies it.
func parseSealing(payload []byte) (signed seal.Signed, record seal.Record, err error) {
	if signed, err = seal.ParseSigned(payload); err == nil {
		record, err = signed.Unverified()
	}
	return signed, record, err
}

// sealingEntry is the journal entry of a sealing record. ev says who brought it.
func sealingEntry(ev audit.Event, signed seal.Signed, record seal.Record, payload []byte) (journal.Entry, error) {
	ev.Detail = map[string]string{
		"sealing": fmt.Sprintf("%x", record.ID), "epoch": record.Epoch.String(), "records_key": fmt.Sprintf("%x", record.Key),
		"signer": fmt.Sprintf("%x", signed.SPKI),
	}
	head, err := audit.EncodeEvent(ev)
	if err != nil {
		return journal.Entry{}, fmt.Errorf("%w: sealing event: %w", errFault, err)
	}
	return journal.Entry{ID: ev.ID, Kind: journal.KindSealing, Head: head, Blob: payload}, nil
}
