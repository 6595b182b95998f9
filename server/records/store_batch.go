package records

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// opened is a batch after an attempt to open it: its contents, or why not.
type opened struct {
	*work
	batch telemetry.Batch
	err   error // nil, errNotYet, *failure or *unavailable
}

func (o *opened) rows() (n int) {
	for i := range o.batch.Messages {
		n += len(o.batch.Messages[i].Observations) + len(o.batch.Messages[i].Waveforms) + 1
	}
	return n
}

// size is about what the contents take in memory, in bytes. Texts that rows share count wherever they stand.
func (o *opened) size() (n int) {
	const row = 400 // the greater of the two structures of a row, without its texts
	for i := range o.batch.Messages {
		m := &o.batch.Messages[i]
		n += row + len(m.Raw) + len(m.Source) + len(m.ControlID) + len(m.SentAt) + len(m.Sender) + len(m.Type) + len(m.Patient.Visit) + len(m.Patient.Location)
		for _, p := range m.Problems {
			n += len(p.Where) + len(p.Reason)
		}
		for j := range m.Observations {
			r := &m.Observations[j]
			n += row + len(r.Value) + len(r.Limits) + len(r.Flags) + len(r.Time) + len(r.Device) + len(r.Code.ID) + len(r.Code.Name) + len(r.Unit.Sent) + len(r.Unit.UCUM)
		}
		for j := range m.Waveforms {
			w := &m.Waveforms[j]
			n += row + 4*len(w.Samples) + len(w.Flags) + len(w.Time) + len(w.Device) + len(w.Code.ID) + len(w.Code.Name) + len(w.Unit.Sent) + len(w.Unit.UCUM)
		}
	}
	return n
}

// open unseals and decodes one batch. Nothing that the batch holds can make it panic or end up in the error.
func (r *Records) open(ctx context.Context, w *work) (o *opened) {
	o = &opened{work: w}
	defer func() {
		if p := recover(); p != nil {
			o.batch, o.err = telemetry.Batch{}, &failure{reason: "opening it panics"}
		}
	}()
	w.sealing = []byte{}
	h, hash, err := seal.CheckAndHash(w.frame)
	if err != nil {
		o.err = &failure{reason: "its frame is damaged"}
		return o
	}
	w.sealing = h.Sealing[:]
	switch {
	case hash != w.hash || h.Epoch != w.epoch || h.Lane != w.lane || h.Number != w.number:
		o.err = &failure{reason: "its frame is not the one that was journaled under this number"}
		return o
	}
	opener, err := r.opener(ctx, sealingKey{w.gateway, h.Sealing})
	var u *unavailable
	switch {
	case errors.Is(err, errNotYet):
		o.err = r.whyNotYet(ctx, w)
		return o
	case errors.As(err, &u):
		o.err = err
		return o
	case err != nil:
		o.err = &failure{reason: "its sealing record does not open with this records key"}
		return o
	}
	_, plain, err := opener.Open(w.frame)
	if err != nil {
		o.err = &failure{reason: "its seal does not open"}
		return o
	}
	if o.batch, err = r.decode(plain); err != nil {
		o.batch, o.err = telemetry.Batch{}, &failure{reason: "its contents cannot be decoded"}
	} else if (o.batch.Report != nil) != (w.lane == telemetry.LaneSelf) {
		// How long readings are kept is by lane, and that lane has no readings; nor does a report count on any other.
		o.batch, o.err = telemetry.Batch{}, &failure{reason: "its contents are not of its lane", final: true}
	}
	return o
}

// whyNotYet tells a batch whose sealing record is still to come from one that can never have a valid one, since its epoch is
// bound to another gateway. (A sealing record that is valid has bound the epoch to its gateway, and the opener holds the batch's
// epoch to the record's.)
func (r *Records) whyNotYet(ctx context.Context, w *work) error {
	var owner string
	err := r.db.QueryRow(ctx, "SELECT gateway FROM epochs WHERE epoch = $1", w.epoch[:]).Scan(&owner)
	switch {
	case errors.Is(err, sql.ErrNoRows), err == nil && owner == w.gateway:
		return errNotYet
	case err != nil:
		return &unavailable{err}
	}
	return &failure{reason: "its epoch belongs to another gateway", final: true}
}

const (
	findBatch      = "SELECT frame, state, attempts, aged FROM batches WHERE stream = $1 AND number = $2"
	dropFrame      = "DELETE FROM batch_frames WHERE stream = $1 AND number = $2"
	findMessage    = "SELECT id, time FROM messages WHERE key = $1"
	insertLeftover = "INSERT INTO leftovers (message, raw, problems) VALUES ($1, $2, $3) ON CONFLICT (message) DO NOTHING"
)

var writeQueries = []string{findBatch, dropFrame, findMessage, insertLeftover, findTop, insertRun, markOpening}

var (
	storeBatches = bulk{"UPDATE batches SET state = 2, attempts = v.column3, reason = '' FROM (VALUES ",
		") AS v WHERE batches.stream = v.column1 AND batches.number = v.column2 AND batches.state <> 2",
		"CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT)"}
	insertMessages = bulk{"INSERT INTO messages (key, source, digest, copy, stream, number, boot, subject, origin, control, sent_at, time, wall, mono, journaled, lane, aged) VALUES ",
		" ON CONFLICT (key) DO NOTHING RETURNING id, key", "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"}
)

// commit writes what became of each batch: observations and state in one transaction.
//
// A seq other than 0 says that with this transaction all entries up to there are settled. It is in the database so that a restored
// one reads again what it lacks, whatever the journal's cursor says.
func (r *Records) commit(ctx context.Context, group []*opened, seq uint64) error {
	for _, o := range group {
		var u *unavailable
		if errors.As(o.err, &u) {
			return u
		}
	}
	return r.write(ctx, func(tx *sql.Tx) error {
		total := totals{passed: &stations{}}
		group, err := r.enterOpened(tx, group, total.passed)
		if err != nil {
			return err
		}
		if err := r.storeAll(tx, group, &total); err != nil {
			return err
		}
		for _, o := range group {
			if o.err == nil {
				continue
			}
			if err := r.settle(tx, o); err != nil {
				return err
			}
		}
		if total.batches > 0 {
			if _, err := tx.Exec(`UPDATE records_totals SET batches = batches + $1, messages = messages + $2, observations = observations + $3,
				parts = parts + $4`, total.batches, total.messages, total.observations, total.parts); err != nil {
				return err
			}
		}
		if err := addWaveforms(tx, &total); err != nil {
			return err
		}
		if err := r.addStations(tx, total.passed); err != nil {
			return err
		}
		return setSeq(tx, seq)
	})
}

// enterOpened makes the rows of those that have none: of what can be stored as it stays, of the rest as being opened, which settle changes. It
// gives the group; one by itself whose number somebody else entered meanwhile is none.
func (r *Records) enterOpened(tx *sql.Tx, group []*opened, passed *stations) ([]*opened, error) {
	var good, bad []any
	var fresh []*work
	for _, o := range group {
		switch {
		case !o.fresh:
			continue
		case o.err == nil:
			good = o.appendRow(good)
		default:
			bad = o.appendRow(bad)
		}
		fresh = append(fresh, o.work)
	}
	unsettled := make(map[name]bool)
	made, err := r.in.write(tx, storedBatches, good)
	if err == nil {
		err = r.in.returned(tx, newBatches, bad, names(unsettled))
	}
	switch {
	case err != nil:
		return nil, err
	case made+int64(len(unsettled)) == int64(len(fresh)):
		return group, r.arrived(tx, fresh, passed)
	case len(group) == 1:
		return nil, nil
	}
	return nil, errClaimed
}

func setSeq(tx *sql.Tx, seq uint64) error {
	if seq == 0 {
		return nil
	}
	_, err := tx.Exec("UPDATE records_totals SET seq = $1", int64(seq))
	return err
}

type totals struct {
	batches, messages, observations, parts, waveforms, samples int64

	passed *stations
}

// settle is for a batch that could not be opened.
func (r *Records) settle(tx *sql.Tx, o *opened) error {
	attempts, state, reason := o.attempts, statePending, o.err.Error()
	due := r.now().Add(time.Duration(attempts*attempts) * time.Second)
	var f *failure
	switch {
	case errors.Is(o.err, errNotYet):
		// It was not opened; it is looked at again when its sealing record has come, and every few minutes in any case.
		attempts, due = attempts-1, r.now().Add(waitInterval)
		if r.now().Sub(time.UnixMilli(o.received)) > keyWait {
			state = stateDead
		}
	case errors.As(o.err, &f) && f.final, attempts >= maxAttempts:
		state = stateDead
	}
	kept, err := r.keepFrame(tx, o.gateway, o.stream, int64(o.number), o.frame)
	if err != nil {
		return err
	}
	if !kept {
		state = stateDead // a frame that is not in the database cannot wait there for its next attempt
	}
	if _, err := tx.Exec("UPDATE batches SET state = $1, attempts = $2, due = $3, reason = $4 WHERE stream = $5 AND number = $6",
		state, attempts, due.UnixMilli(), reason, o.stream, int64(o.number)); err != nil {
		return err
	}
	if state != stateDead {
		return nil
	}
	detail := map[string]string{
		"epoch": o.epoch.String(), "lane": o.lane.String(), "number": fmt.Sprint(o.number), "frame_sha256": fmt.Sprintf("%x", o.hash),
	}
	if !kept {
		detail["frame"] = "in the journal only: the room for batches that cannot be opened is full"
	}
	r.log.Error("batch is dead; its frame is kept", "batch", o.work.String(), "reason", reason, "in_database", kept)
	if err := r.outbox.Add(tx, audit.Event{
		Type: audit.BatchDead, Actor: audit.Actor{ID: "server"}, Target: o.gateway, Outcome: audit.Failed, Reason: reason, Detail: detail,
	}); err != nil {
		return err
	}
	return r.tryNext(tx, o.stream, int64(o.number))
}

// The years that RFC 3339 and FHIR can write, as Unix milliseconds: what is stored lies within.
const (
	minAt = -62135596800000 // 0001-01-01
	MaxAt = 253402300799999 // the end of 9999
)

// placed is the time by which an observation or a waveform is found: the device's where it could be read, else when the gateway had it, which the
// marks then say.
func placed(m *telemetry.Message, at int64, marks telemetry.Marks) (int64, telemetry.Marks) {
	if at == 0 || at < minAt || at > MaxAt || marks&telemetry.MarkTimeUnread != 0 {
		at = m.Received.Wall
		marks |= telemetry.MarkTimeUnread
	}
	return min(max(at, minAt), MaxAt), marks
}

func (r *Records) storeLeftover(tx *sql.Tx, message int64, m *telemetry.Message) error {
	if len(m.Raw) == 0 && len(m.Problems) == 0 {
		return nil
	}
	type problem struct {
		Where  string `json:"where"`
		Reason string `json:"reason"`
	}
	problems := make([]problem, len(m.Problems))
	for i, p := range m.Problems {
		problems[i] = problem(p)
	}
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(problems); err != nil {
		return err
	}
	_, err := r.in.exec(tx, insertLeftover, message, m.Raw, text.String())
	return err
}
