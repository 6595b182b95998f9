package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

// maxSeries bounds what one search walks along; a patient has tens, and a hostile gateway can make more.
const maxSeries = 10_000

// ErrTooBroad means that a query matches more kinds of readings than a search can merge.
var ErrTooBroad = errors.New("too many kinds of readings match; name codes")

// Search gives the newest observations that match, one page of them, on one snapshot. A page that continues with After the last
// Position of the former one neither repeats nor skips a result, however much is stored or disposed of meanwhile; only a reading whose
// time is repaired meanwhile may move between pages (times.go).
func (s *Store) Search(ctx context.Context, q Query) (page Page, err error) {
	err = s.db.Read(ctx, func(tx *sql.Tx) error {
		series, err := matching(ctx, tx, &q)
		if err != nil {
			return err
		}
		top, err := newest(ctx, tx, series, &q)
		if err != nil {
			return err
		}
		room := q.Room
		if room <= 0 {
			room = math.MaxInt
		}
		page.Observations, err = loadPlaces(ctx, tx, top[:min(len(top), q.Limit)], room)
		page.More = len(page.Observations) < len(top)
		return err
	})
	if err != nil && !errors.Is(err, ErrTooBroad) {
		return Page{}, fmt.Errorf("records: %w", err)
	}
	return page, err
}

// walked is one kind of reading that a search finds.
type walked struct {
	id       int64
	waveform bool
}

// subjects are the query's, as what stands in IN (), with its parameters; false where there are none.
func (q *Query) subjects() (in string, args []any, some bool) {
	if q.NoPatient {
		return "SELECT 0", nil, true
	}
	for _, p := range q.Patients {
		args = append(args, p)
	}
	return "SELECT id FROM subjects WHERE patient IN (" + sqldb.Parameters(1, len(q.Patients)) + ")", args, len(args) > 0
}

func matching(ctx context.Context, tx *sql.Tx, q *Query) (ids []walked, err error) {
	subjects, args, some := q.subjects()
	if !some {
		return nil, nil
	}
	rows, err := tx.QueryContext(ctx, "SELECT id, mdc, ucum, code_system, code, kind FROM series WHERE kind <> 2 AND subject IN ("+subjects+")", args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	type named struct {
		walked
		Series
	}
	var long []named // whose texts are looked up once this is read
	for rows.Next() {
		var kind int64
		var one named
		if err := rows.Scan(&one.id, &one.Code.MDC, &one.UCUM, &one.Code.Sys, &one.Code.ID, &kind); err != nil {
			return nil, err
		}
		one.waveform, one.UnitUnknown = isWaveform(kind), kind == kindUnitUnknown || kind == kindWaveformUnitUnknown
		one.Waveform = one.waveform
		switch {
		case q.Match != nil && (strings.HasPrefix(one.Code.ID, longMark) || strings.HasPrefix(one.Code.Sys, longMark) || strings.HasPrefix(one.UCUM, longMark)):
			long = append(long, one)
		case q.Match == nil || q.Match(one.Series):
			ids = append(ids, one.walked)
		}
		if len(ids)+len(long) > maxSeries {
			return nil, ErrTooBroad
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for _, one := range long {
		if err := expand(ctx, tx.QueryRowContext, &one.Code.ID, &one.Code.Sys, &one.UCUM); err != nil {
			return nil, err
		}
		if q.Match(one.Series) {
			ids = append(ids, one.walked)
		}
	}
	return ids, nil
}

// walk merges what a search walks along: the layouts that have a wanted series, and the waveforms of each wanted series.
type walk struct {
	tx    *sql.Tx
	want  int // one more than the limit, to know whether there is more
	from  int64
	to    int64
	after Position
	top   []place // the newest so far, want at most
}

// newest gives the places of the newest that match. Once enough are known, later layouts and series are read only as far as they can still
// contribute.
func newest(ctx context.Context, tx *sql.Tx, series []walked, q *Query) ([]place, error) {
	w := walk{tx: tx, want: q.Limit + 1, from: math.MinInt64, to: math.MaxInt64, after: Position{At: math.MaxInt64, Message: math.MaxInt64, Index: math.MaxInt64}}
	if q.From != nil {
		w.from = *q.From
	}
	if q.To != nil {
		w.to = *q.To
	}
	if q.After != nil {
		w.after = *q.After
	}
	layouts, err := layoutsWith(ctx, tx, q, series)
	if err != nil {
		return nil, err
	}
	rows, err := tx.PrepareContext(noCancel, walkReadings)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for i := range layouts {
		if err := errors.Join(ctx.Err(), w.readings(rows, &layouts[i])); err != nil {
			return nil, err
		}
	}
	chunks, err := tx.PrepareContext(noCancel, walkWaveforms)
	if err != nil {
		return nil, err
	}
	defer func() { _ = chunks.Close() }()
	for _, one := range series {
		if !one.waveform {
			continue
		}
		if err := errors.Join(ctx.Err(), w.waveforms(chunks, one.id)); err != nil {
			return nil, err
		}
	}
	return w.top, nil
}

const (
	walkReadings = `SELECT id, at, cells FROM readings WHERE layout = $1 AND at >= $2 AND at < $3 AND (at, id) < ($4, $5)
		ORDER BY at DESC, id DESC LIMIT $6`
	walkWaveforms = `SELECT at, message, idx FROM waveforms WHERE series = $1 AND at >= $2 AND at < $3 AND (at, message, idx) < ($4, $5, $6)
		ORDER BY at DESC, message DESC, idx DESC LIMIT $7`
)

// walkedLayout is a layout with at least one series that is wanted.
type walkedLayout struct {
	id     int64
	series []int64 // 0 for one that is not
	wanted int
}

func layoutsWith(ctx context.Context, tx *sql.Tx, q *Query, series []walked) (out []walkedLayout, err error) {
	wanted := make(map[int64]bool, len(series))
	for _, one := range series {
		if !one.waveform {
			wanted[one.id] = true
		}
	}
	subjects, args, some := q.subjects()
	if !some || len(wanted) == 0 {
		return nil, nil
	}
	rows, err := tx.QueryContext(ctx, "SELECT id, series FROM layouts WHERE subject IN ("+subjects+")", args...)
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var l walkedLayout
		var list sql.RawBytes
		err := rows.Scan(&l.id, &list)
		if err == nil {
			l.series, err = parseSeries(list)
		}
		if err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		for i, id := range l.series {
			if wanted[id] {
				l.wanted++
			} else {
				l.series[i] = 0
			}
		}
		if l.wanted > 0 {
			out = append(out, l)
		}
	}
	return out, errors.Join(rows.Err(), rows.Close())
}

// readings walks along one layout. Each of its rows has all wanted series, so that nearly all that is read is found.
func (w *walk) readings(stmt *sql.Stmt, l *walkedLayout) error {
	found := len(w.top)
	complete := found // of them those of messages that were read whole: the parts of one are not in the order of indexes
	at, id := w.after.At, int64(math.MaxInt64)
	if w.after.Message < 1<<(63-partBits)-1 {
		id, _ = rowsOf(w.after.Message + 1)
	}
	message, messageAt := int64(-1), int64(0)
	for limit := (w.want+l.wanted-1)/l.wanted + 2; ; {
		rows, err := stmt.QueryContext(noCancel, l.id, w.from, w.to, at, id, limit)
		if err != nil {
			return err
		}
		n := 0
		for ; rows.Next(); n++ {
			var cells sql.RawBytes
			if err = rows.Scan(&id, &at, &cells); err != nil {
				break
			}
			if m := id >> partBits; m != message || at != messageAt {
				message, messageAt, complete = m, at, len(w.top)
			}
			if err = w.cells(l, at, id, cells); err != nil {
				break
			}
		}
		if err := errors.Join(err, rows.Err(), rows.Close()); err != nil {
			return err
		}
		if n < limit || complete-found >= w.want {
			w.keep()
			return nil
		}
	}
}

// maxWalked bounds the texts of a reading that a walk holds, in bytes. A device can say 64 KB in each, and a walk finds many times what a page has
// room for.
const maxWalked = 512

// cells takes what is wanted of the row with that id.
func (w *walk) cells(l *walkedLayout, at, id int64, data []byte) error {
	damaged := false
	err := parseCells(data, func(i int, c *cell) bool {
		if i >= len(l.series) {
			damaged = true
			return false
		}
		at := Position{At: at, Message: id >> partBits, Index: int64(c.index)}
		if l.series[i] == 0 || at.compare(w.after) >= 0 {
			return true
		}
		p := c.place(at, l.series[i])
		if len(c.value)+len(c.time) > maxWalked {
			p.row = id
		} else {
			p.takeTexts(c)
		}
		w.top = append(w.top, p)
		return true
	})
	if damaged {
		err = errCells
	}
	return err
}

func (w *walk) waveforms(stmt *sql.Stmt, series int64) error {
	rows, err := stmt.QueryContext(noCancel, series, w.from, w.to, w.after.At, w.after.Message, w.after.Index, w.want)
	if err != nil {
		return err
	}
	for rows.Next() {
		p := place{waveform: true}
		if err := rows.Scan(&p.At, &p.Message, &p.Index); err != nil {
			return errors.Join(err, rows.Close())
		}
		w.top = append(w.top, p)
	}
	w.keep()
	return errors.Join(rows.Err(), rows.Close())
}

// keep keeps the newest.
func (w *walk) keep() {
	slices.SortFunc(w.top, func(a, b place) int { return -a.compare(b.Position) })
	if len(w.top) >= w.want {
		w.top = w.top[:w.want]
		w.from = max(w.from, w.top[w.want-1].At)
	}
}

// place is where a reading or a chunk of samples stands; of a reading with what its cell says.
type place struct {
	Position
	waveform bool

	series, form int64
	marks        telemetry.Marks
	row          int64 // where value and time are still to be read; 0: they are here
	value        string
	time         sql.NullString // its own; else its message's
}

// place copies the cell, without its texts.
func (c *cell) place(p Position, series int64) place {
	return place{Position: p, series: series, form: c.form, marks: c.marks}
}

func (p *place) takeTexts(c *cell) {
	p.row, p.value, p.time = 0, string(c.value), sql.NullString{String: string(c.time), Valid: c.own}
}

// placeOf looks for a reading of a message; nil where there is none.
func placeOf(ctx context.Context, tx *sql.Tx, message int64, index uint32) (found *place, err error) {
	first, last := rowsOf(message)
	rows, err := tx.QueryContext(ctx, "SELECT r.at, r.cells, l.series FROM readings r JOIN layouts l ON l.id = r.layout WHERE r.id BETWEEN $1 AND $2", first, last)
	if err != nil {
		return nil, err
	}
	for found == nil && rows.Next() {
		var at int64
		var cells, list sql.RawBytes
		var series []int64
		if err = rows.Scan(&at, &cells, &list); err == nil {
			series, err = parseSeries(list)
		}
		if err == nil {
			err = parseCells(cells, func(i int, c *cell) bool {
				if c.index == index && i < len(series) {
					p := c.place(Position{At: at, Message: message, Index: int64(index)}, series[i])
					p.takeTexts(c)
					found = &p
				}
				return found == nil
			})
		}
		if err != nil {
			return nil, errors.Join(err, rows.Close())
		}
	}
	return found, errors.Join(rows.Err(), rows.Close())
}
