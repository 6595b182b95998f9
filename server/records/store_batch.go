package records

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"wardlink/audit"
	"wardlink/telemetry"
	"wardlink/telemetry/codes"
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
		n += row + len(m.Raw) + len(m.ControlID) + len(m.SentAt) + len(m.Sender) + len(m.Type) + len(m.Patient.Visit) + len(m.Patient.Location)
		for j := range m.Observations {
			r := &m.Observations[j]
			n += row + len(r.Value) + len(r.Limits) + len(r.Flags) + len(r.Time) + len(r.Device) + len(r.Code.Name)
		}
		for j := range m.Waveforms {
			w := &m.Waveforms[j]
			n += row + 4*len(w.Samples) + len(w.Flags) + len(w.Time) + len(w.Device) + len(w.Code.Name)
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
	h, err := seal.CheckFrame(w.frame)
	switch {
	case err != nil:
		o.err = &failure{reason: "its frame is damaged"}
		return o
	case seal.FrameHash(w.frame) != w.hash || h.Epoch != w.epoch || h.Lane != w.lane || h.Number != w.number:
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
	insertBatch = `INSERT INTO batches (stream, number, frame, sealing, seq, received, state, attempts, due, reason, aged)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, '', $9) ON CONFLICT (stream, number) DO NOTHING`
	findBatch     = "SELECT frame, state, attempts, aged FROM batches WHERE stream = $1 AND number = $2"
	storeBatch    = "UPDATE batches SET state = 2, attempts = $1, reason = '' WHERE stream = $2 AND number = $3 AND state <> 2"
	dropFrame     = "DELETE FROM batch_frames WHERE stream = $1 AND number = $2"
	insertMessage = `INSERT INTO messages (key, source, digest, copy, stream, number, boot, subject, origin, control, sent_at, time, wall, mono, journaled, lane, aged)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) ON CONFLICT (key) DO NOTHING RETURNING id`
	findMessage       = "SELECT id, time FROM messages WHERE key = $1"
	insertObservation = `INSERT INTO observations (message, idx, series, form, at, value, time, marks)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (message, idx) DO NOTHING`
	insertLeftover = "INSERT INTO leftovers (message, raw, problems) VALUES ($1, $2, $3) ON CONFLICT (message) DO NOTHING"
)

var writeQueries = []string{insertBatch, findBatch, storeBatch, dropFrame, insertMessage, findMessage, insertObservation, insertLeftover, extendRun, findTop, insertRun, addLane, addStored, addSource}

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
		var total totals
		for _, o := range group {
			if err := r.settle(tx, o, &total); err != nil {
				return err
			}
		}
		if total != (totals{}) {
			if _, err := tx.Exec(`UPDATE records_totals SET batches = batches + $1, messages = messages + $2, observations = observations + $3,
				parts = parts + $4`, total.batches, total.messages, total.observations, total.parts); err != nil {
				return err
			}
		}
		if err := addWaveforms(tx, &total); err != nil {
			return err
		}
		if total.passed != nil {
			if err := r.addStations(tx, total.passed); err != nil {
				return err
			}
		}
		return setSeq(tx, seq)
	})
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

	passed *stations // nil when nothing was stored
}

func (r *Records) settle(tx *sql.Tx, o *opened, total *totals) error {
	if o.err == nil {
		return r.store(tx, o, total)
	}
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

func (r *Records) store(tx *sql.Tx, o *opened, total *totals) error {
	res, err := r.in.exec(tx, storeBatch, int64(o.attempts), o.stream, int64(o.number))
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err // stored already
	}
	boot, err := r.in.boot(tx, bootKey{o.gateway, o.batch.Boot})
	if err != nil {
		return err
	}
	if total.passed == nil {
		total.passed = &stations{}
	}
	if o.batch.Report != nil {
		if err := errors.Join(r.storeReport(tx, o), r.learnClock(tx, o, boot, o.batch.Report)); err != nil {
			return err
		}
	}
	for i := range o.batch.Messages {
		if err := r.storeMessage(tx, o, boot, &o.batch.Messages[i], total); err != nil {
			return err
		}
	}
	total.batches++
	total.passed.stored(o.work)
	_, err = r.in.exec(tx, dropFrame, o.stream, int64(o.number))
	return err
}

func (r *Records) storeMessage(tx *sql.Tx, o *opened, boot int64, m *telemetry.Message, total *totals) error {
	source, err := r.in.source(tx, sourceKey{o.gateway, m.Source})
	if err != nil {
		return err
	}
	subject, err := r.in.subject(tx, subjectKey{m.Patient.Authority, m.Patient.ID})
	if err != nil {
		return err
	}
	origin, err := r.in.origin(tx, originKey{m.Type, m.Sender, m.Processing, m.Patient.Location, m.Patient.Visit})
	if err != nil {
		return err
	}
	first := m.SentAt
	switch {
	case len(m.Observations) > 0:
		first = m.Observations[0].Time
	case len(m.Waveforms) > 0:
		first = m.Waveforms[0].Time
	}
	aged := o.received
	if o.aged != 0 {
		aged = o.aged
	}
	key := messageKey(o.gateway, m.Source, m.Digest, m.Copy)
	readings := total.observations + total.waveforms
	var id int64
	err = r.in.row(tx, insertMessage, key[:], source, m.Digest[:], int64(m.Copy), o.stream, int64(o.number), boot, subject, origin,
		m.ControlID, m.SentAt, first, m.Received.Wall, m.Received.Mono, o.received, int64(o.lane), aged).Scan(&id)
	fresh := err == nil
	if errors.Is(err, sql.ErrNoRows) {
		err = r.in.row(tx, findMessage, key[:]).Scan(&id, &first)
	}
	if err != nil {
		return err
	}
	if fresh {
		total.messages++
	}
	if m, err = r.repairArrival(tx, boot, id, m); err != nil {
		return err
	}
	if !fresh {
		if m, err = unread(tx, id, m); err != nil {
			return err
		}
	}
	for i := range m.Observations {
		if err := r.storeObservation(tx, id, subject, first, m, &m.Observations[i], total); err != nil {
			return err
		}
	}
	for i := range m.Waveforms {
		if err := r.storeWaveform(tx, id, subject, aged, first, m, &m.Waveforms[i], total); err != nil {
			return err
		}
	}
	if fresh {
		total.passed.message(source, id, subject, bedded(m), o.received, total.observations+total.waveforms-readings)
	}
	return r.storeLeftover(tx, id, m)
}

// unread gives a message that is stored already without what stands there under the same index as another kind: an agent that was
// updated makes a waveform of what was a row of numbers before, and an index names one thing of a message for ever.
func unread(tx *sql.Tx, id int64, m *telemetry.Message) (*telemetry.Message, error) {
	indices := func(table string) (map[uint32]bool, error) {
		rows, err := tx.Query("SELECT idx FROM "+table+" WHERE message = $1", id)
		if err != nil {
			return nil, err
		}
		held := map[uint32]bool{}
		for rows.Next() {
			var i uint32
			if err := rows.Scan(&i); err != nil {
				return nil, errors.Join(err, rows.Close())
			}
			held[i] = true
		}
		return held, errors.Join(rows.Err(), rows.Close())
	}
	observations, err := indices("observations")
	if err != nil {
		return nil, err
	}
	waveforms, err := indices("waveforms")
	if err != nil {
		return nil, err
	}
	again := *m
	again.Observations = slices.DeleteFunc(slices.Clone(m.Observations), func(o telemetry.Observation) bool { return waveforms[o.Index] })
	again.Waveforms = slices.DeleteFunc(slices.Clone(m.Waveforms), func(w telemetry.Waveform) bool { return observations[w.Index] })
	return &again, nil
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

func (r *Records) storeObservation(tx *sql.Tx, message, subject int64, first string, m *telemetry.Message, obs *telemetry.Observation, total *totals) error {
	kind := int64(kindReading)
	switch {
	case codes.IsDevice(obs.Code.MDC) && obs.Marks&telemetry.MarkNoReading != 0:
		// It is kept, since it says which device the rows below it are of; nothing was measured that could be missing.
		kind = kindPart
	case obs.Marks&telemetry.MarkUnknownUnit != 0:
		kind = kindUnitUnknown
	}
	series, err := r.in.oneSeries(tx, seriesKey{subject, obs.Code.MDC, obs.Unit.UCUM, obs.Code.Sys, obs.Code.ID, kind})
	if err != nil {
		return err
	}
	form, err := r.in.form(tx, formKey{
		obs.Type, obs.Code.Name, obs.Unit.Sent, obs.SubID, obs.Limits, obs.Device, obs.Status, obs.Flags, m.BedOf(obs.Bed),
	})
	if err != nil {
		return err
	}
	var sent any
	if obs.Time != first {
		sent = obs.Time
	}
	at, marks := placed(m, obs.At, obs.Marks)
	res, err := r.in.exec(tx, insertObservation, message, int64(obs.Index), series, form, at, obs.Value, sent, int64(marks))
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if kind == kindPart {
		total.parts += n
	} else {
		total.observations += n
	}
	return err
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
