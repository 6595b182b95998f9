package records

import (
	"database/sql"
	"errors"

	"wardlink/telemetry"
)

// stored is a message on its way into the tables.
type stored struct {
	*telemetry.Message
	o                             *opened
	boot, source, subject, origin int64
	aged                          int64  // what its age counts from
	first                         string // the text of time that its row has, which readings need not repeat
	key                           [16]byte
}

// storeAll stores the batches of a group that could be opened: each once, with what it holds. Rows of the same table go in together.
func (r *Records) storeAll(tx *sql.Tx, group []*opened, total *totals) error {
	group, err := r.claim(tx, group)
	if err != nil || len(group) == 0 {
		return err
	}
	var messages []*stored
	for _, o := range group {
		boot, err := r.in.boot(tx, bootKey{o.gateway, o.batch.Boot})
		if err != nil {
			return err
		}
		if o.batch.Report != nil {
			if err := r.storeReport(tx, o); err != nil {
				return err
			}
			if err := r.learnClock(tx, o, boot, o.batch.Report); err != nil {
				return err
			}
		}
		for i := range o.batch.Messages {
			m, err := r.refer(tx, o, boot, &o.batch.Messages[i])
			if err != nil {
				return err
			}
			messages = append(messages, m)
		}
		total.batches++
		total.passed.stored(o.work)
		if o.again { // only what waited has a frame
			if _, err := r.in.exec(tx, dropFrame, o.stream, int64(o.number)); err != nil {
				return err
			}
		}
	}
	return r.storeMessages(tx, messages, total)
}

// errClaimed says that some of a group's batches are stored already. Which ones, each alone tells.
var errClaimed = errors.New("batches of the group are stored already")

// claim gives the batches of a group that could be opened, and marks those as stored that had a row before. One by itself that was stored before
// is none.
func (r *Records) claim(tx *sql.Tx, group []*opened) (out []*opened, err error) {
	var args []any
	rows := int64(0)
	marked := make(map[name]bool)
	for _, o := range group {
		n := o.name()
		switch {
		case o.err != nil || marked[n]:
			continue
		case !o.fresh:
			args = append(args, n.stream, n.number, int64(o.attempts))
			rows++
		}
		marked[n] = true
		out = append(out, o)
	}
	changed, err := r.in.write(tx, storeBatches, args)
	switch {
	case err != nil:
		return nil, err
	case changed == rows:
		return out, nil
	case len(group) == 1:
		return nil, nil
	}
	return nil, errClaimed
}

// refer finds or makes the rows that a message's own refers to.
func (r *Records) refer(tx *sql.Tx, o *opened, boot int64, m *telemetry.Message) (s *stored, err error) {
	s = &stored{Message: m, o: o, boot: boot, aged: o.received, key: messageKey(o.gateway, m.Source, m.Digest, m.Copy), first: m.SentAt}
	if o.aged != 0 {
		s.aged = o.aged
	}
	switch {
	case len(m.Observations) > 0:
		s.first = m.Observations[0].Time
	case len(m.Waveforms) > 0:
		s.first = m.Waveforms[0].Time
	}
	if s.source, err = r.in.source(tx, sourceKey{o.gateway, m.Source}); err != nil {
		return nil, err
	}
	if s.subject, err = r.in.subject(tx, subjectKey{m.Patient.Authority, m.Patient.ID}); err != nil {
		return nil, err
	}
	s.origin, err = r.in.origin(tx, originKey{m.Type, m.Sender, m.Processing, m.Patient.Location, m.Patient.Visit})
	return s, err
}

func (r *Records) storeMessages(tx *sql.Tx, messages []*stored, total *totals) error {
	var args []any
	for _, m := range messages {
		args = append(args, m.key[:], m.source, m.Digest[:], int64(m.Copy), m.o.stream, int64(m.o.number), m.boot, m.subject, m.origin,
			m.ControlID, m.SentAt, m.first, m.Received.Wall, m.Received.Mono, m.o.received, int64(m.o.lane), m.aged)
	}
	fresh := make(map[[16]byte]int64)
	if err := r.in.returned(tx, insertMessages, args, func(rows *sql.Rows) error {
		var id int64
		var key []byte
		err := rows.Scan(&id, &key)
		if err == nil && len(key) != 16 {
			err = errors.New("the key of a message is not 16 bytes long")
		}
		if err == nil {
			fresh[[16]byte(key)] = id
		}
		return err
	}); err != nil {
		return err
	}
	w := readings{r: r, tx: tx, total: total, rows: rowMaker{in: r.in}}
	for _, m := range messages {
		id, first := fresh[m.key]
		delete(fresh, m.key) // the same message in another batch of the group is one that is known
		if err := w.message(m, id, first); err != nil {
			return err
		}
	}
	return w.flush()
}

// readings gathers the rows of what messages hold.
type readings struct {
	r     *Records
	tx    *sql.Tx
	total *totals

	rows      rowMaker
	waveforms []any // parameters
}

// message adds what one message holds. id is that of its row, if it is fresh.
func (w *readings) message(m *stored, id int64, fresh bool) error {
	if fresh {
		w.total.messages++
	} else if err := w.r.in.row(w.tx, findMessage, m.key[:]).Scan(&id, &m.first); err != nil {
		return err
	}
	arrived, err := w.r.repairArrival(w.tx, m.boot, id, m.Message)
	if err != nil {
		return err
	}
	var has map[uint32]bool
	part := int64(0)
	if !fresh {
		if err := w.flush(); err != nil { // some of it may be among what is gathered
			return err
		}
		if has, part, err = held(w.tx, id); err != nil {
			return err
		}
	}
	count, parts := int64(0), int64(0)
	for i := range arrived.Observations {
		o := &arrived.Observations[i]
		if has[o.Index] {
			continue
		}
		isPart, err := w.observation(m, arrived, o)
		switch {
		case err != nil:
			return err
		case isPart:
			parts++
		default:
			count++
		}
	}
	if _, err := w.rows.end(w.tx, id, part, m.subject); err != nil {
		return err
	}
	w.total.observations, w.total.parts = w.total.observations+count, w.total.parts+parts
	for i := range arrived.Waveforms {
		o := &arrived.Waveforms[i]
		if has[o.Index] {
			continue
		}
		count++
		if err := w.waveform(id, m, arrived, o); err != nil {
			return err
		}
	}
	if fresh {
		w.total.passed.message(m.source, id, m.subject, bedded(arrived), m.o.received, count)
	}
	if len(w.rows.args) >= flushRows || w.rows.size >= flushSize {
		if err := w.flush(); err != nil {
			return err
		}
	}
	return w.r.storeLeftover(w.tx, id, arrived)
}

// Bounds of what is gathered, so that a group's rows are not in memory twice: parameters, and bytes of cells.
const (
	flushRows = 6 * 1024
	flushSize = 4 << 20
)

// flush writes what was gathered.
func (w *readings) flush() error {
	if _, err := w.r.in.write(w.tx, insertReadings, w.rows.args); err != nil {
		return err
	}
	w.rows.args, w.rows.size = w.rows.args[:0], 0
	return w.flushWaveforms()
}
