package records

import (
	"crypto/sha256"
	"database/sql"
	_ "embed"
	"errors"

	"wardlink/server/sqldb"
	"wardlink/telemetry"
	"wardlink/telemetry/codes"
)

var (
	//go:embed readings_0001.sql
	readings1 string
	//go:embed readings_0002.sql
	readings2 string
)

func readingMigrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "records_readings", Version: 1, SQL: readings1, Step: gatherReadings}, {Domain: "records_readings", Version: 2, SQL: readings2}}
}

// partBits of readings.id are the part, and the others the message. A message that a monitor sends needs few parts. But it may come again in any
// number of batches, with other readings in each, so that who means harm runs out of parts: those beyond would be ids of the next message.
const partBits = 20

// errParts fails the batch that brings the rows, and nobody else's.
var errParts = errors.New("a message has more rows than ids")

// rowsOf are the ids that rows of a message may have: from first to last.
func rowsOf(message int64) (first, last int64) {
	return message << partBits, message<<partBits | (1<<partBits - 1)
}

// A device can say other readings in each message, and a search walks along each layout that has a series: beyond so many layouts of several
// series a subject gets only layouts of one, of which each series has one. Readings without a patient are of all devices together.
const (
	maxLayouts          = 64
	maxLayoutsNoPatient = 1024
)

const (
	findLayout   = "SELECT id FROM layouts WHERE hash = $1"
	insertLayout = "INSERT INTO layouts (subject, width, hash, series) VALUES ($1, $2, $3, $4) RETURNING id"
	countLayouts = "SELECT COUNT(*) FROM layouts WHERE subject = $1 AND width > 1"
)

var (
	layoutQueries  = []string{findLayout, insertLayout, countLayouts}
	insertReadings = bulk{"INSERT INTO readings (id, layout, at, unread, count, cells) VALUES ", "", "?, ?, ?, ?, ?, ?"}
)

// layout gives the id of the layout of some series of a subject; false where it would be one of several series too many.
func (in *interner) layout(tx *sql.Tx, subject int64, series []int64) (id int64, ok bool, err error) {
	in.listed = appendSeries(in.listed[:0], series)
	if id, ok := in.layouts[string(in.listed)]; ok {
		return id, true, nil
	}
	hash := sha256.Sum256(in.listed)
	err = in.row(tx, findLayout, hash[:]).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		if len(series) > 1 {
			many, most := 0, maxLayouts
			if subject == 0 {
				most = maxLayoutsNoPatient
			}
			if err := in.row(tx, countLayouts, subject).Scan(&many); err != nil || many >= most {
				return 0, false, err
			}
		}
		err = in.row(tx, insertLayout, subject, int64(len(series)), hash[:], in.listed).Scan(&id)
	}
	if err != nil {
		return 0, false, err
	}
	if len(in.layouts) >= maxInterned {
		clear(in.layouts)
	}
	in.layouts[string(in.listed)] = id
	return id, true, nil
}

// reading is one on its way into a row: its cell, and its series.
type reading struct {
	series, form int64
	index        uint32
	marks        telemetry.Marks
	own          bool
	value, sent  string
}

// rowGroup are readings that can share a row.
type rowGroup struct {
	at       int64
	unread   bool
	readings []reading
}

// openGroups bounds among how many groups the one of a reading is looked for: who changes the instant from reading to reading gets more rows.
const openGroups = 8

// rowMaker makes the rows of one message after the other.
type rowMaker struct {
	in     *interner
	groups []rowGroup // of the message; their memory is used again
	series []int64
	cells  cellWriter

	args []any // parameters of insertReadings
	size int   // bytes of the cells among them
}

// add takes a reading of the message. Their indexes ascend.
func (w *rowMaker) add(at int64, r reading) {
	unread := r.marks&telemetry.MarkTimeUnread != 0
	n := len(w.groups)
	for i := n - 1; i >= max(0, n-openGroups); i-- {
		if g := &w.groups[i]; g.at == at && g.unread == unread && len(g.readings) < maxCells {
			g.readings = append(g.readings, r)
			return
		}
	}
	if n < cap(w.groups) {
		w.groups = w.groups[:n+1]
	} else {
		w.groups = append(w.groups, rowGroup{})
	}
	g := &w.groups[n]
	g.at, g.unread, g.readings = at, unread, append(g.readings[:0], r)
}

// end makes rows of what was added: of a message, from that part on. It gives the part that comes after them.
func (w *rowMaker) end(tx *sql.Tx, message, part, subject int64) (next int64, err error) {
	for i := range w.groups {
		g := &w.groups[i]
		if part+int64(len(g.readings)) > 1<<partBits { // each may need a row of its own
			w.groups = w.groups[:0]
			return 0, errParts
		}
		w.series = w.series[:0]
		for j := range g.readings {
			w.series = append(w.series, g.readings[j].series)
		}
		id, ok, err := w.in.layout(tx, subject, w.series)
		if err != nil {
			return 0, err
		}
		if ok {
			w.row(message<<partBits+part, id, g, g.readings)
			part++
			continue
		}
		for j := range g.readings {
			if id, _, err = w.in.layout(tx, subject, w.series[j:j+1]); err != nil {
				return 0, err
			}
			w.row(message<<partBits+part, id, g, g.readings[j:j+1])
			part++
		}
	}
	w.groups = w.groups[:0]
	return part, nil
}

func (w *rowMaker) row(id, layout int64, g *rowGroup, of []reading) {
	w.cells = cellWriter{} // the bytes become a parameter
	w.cells.data = make([]byte, 0, 16*len(of))
	for j := range of {
		r := &of[j]
		w.cells.add(r.index, r.marks, r.form, r.value, r.sent, r.own)
	}
	w.args = append(w.args, id, layout, g.at, sqldb.Flag(g.unread), int64(len(of)), w.cells.data)
	w.size += len(w.cells.data)
}

// observation tells whether it is the part of a device, which is no observation.
func (w *readings) observation(s *stored, m *telemetry.Message, obs *telemetry.Observation) (part bool, err error) {
	kind := int64(kindReading)
	switch {
	case codes.IsDevice(obs.Code.MDC) && obs.Marks&telemetry.MarkNoReading != 0:
		// It is kept, since it says which device the rows below it are of; nothing was measured that could be missing.
		kind = kindPart
	case obs.Marks&telemetry.MarkUnknownUnit != 0:
		kind = kindUnitUnknown
	}
	series, err := w.r.in.oneSeries(w.tx, seriesKey{s.subject, obs.Code.MDC, obs.Unit.UCUM, obs.Code.Sys, obs.Code.ID, kind})
	if err != nil {
		return false, err
	}
	form, err := w.r.in.form(w.tx, formKey{
		obs.Type, obs.Code.Name, obs.Unit.Sent, obs.SubID, obs.Limits, obs.Device, obs.Status, obs.Flags, m.BedOf(obs.Bed),
	})
	if err != nil {
		return false, err
	}
	at, marks := placed(m, obs.At, s.o.marked(obs.Marks))
	w.rows.add(at, reading{series: series, form: form, index: obs.Index, marks: marks, own: obs.Time != s.first, value: obs.Value, sent: obs.Time})
	return kind == kindPart, nil
}

// held are the indexes that a message which is stored already has. An index names one thing of a message for ever: an agent that was updated
// makes a waveform of what was a row of numbers before, and what stands there stays. part is the first that no row has.
func held(tx *sql.Tx, message int64) (indexes map[uint32]bool, part int64, err error) {
	indexes = make(map[uint32]bool)
	first, last := rowsOf(message)
	rows, err := tx.Query("SELECT id, cells FROM readings WHERE id BETWEEN $1 AND $2 ORDER BY id", first, last)
	if err != nil {
		return nil, 0, err
	}
	for rows.Next() {
		var id int64
		var cells sql.RawBytes
		err := rows.Scan(&id, &cells)
		if err == nil {
			err = parseCells(cells, func(_ int, c *cell) bool {
				indexes[c.index] = true
				return true
			})
		}
		if err != nil {
			return nil, 0, errors.Join(err, rows.Close())
		}
		part = id - first + 1
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, 0, err
	}
	if rows, err = tx.Query("SELECT idx FROM waveforms WHERE message = $1", message); err != nil {
		return nil, 0, err
	}
	for rows.Next() {
		var i uint32
		if err := rows.Scan(&i); err != nil {
			return nil, 0, errors.Join(err, rows.Close())
		}
		indexes[i] = true
	}
	return indexes, part, errors.Join(rows.Err(), rows.Close())
}
