package records

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"

	"wardlink/server/sqldb"
)

// messagesAtOnce are the messages that one statement looks for.
const messagesAtOnce = 32

// loadPlaces reads what stands at the given places, in that order, until it is more than room bytes; what is left of places is not
// returned. The first is in any case.
func loadPlaces(ctx context.Context, tx *sql.Tx, places []place, room int) (out []Observation, err error) {
	l := loader{tx: tx, stmts: make(map[string]*sql.Stmt), messages: make(map[int64]*Observation), series: make(map[int64]*Observation), forms: make(map[int64]*Observation)}
	defer l.close()
	size := 0
	for i := range places {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var o Observation
		if places[i].waveform {
			o, err = l.waveform(&places[i])
		} else {
			o, err = l.reading(places[i:])
		}
		if err == nil {
			err = o.expand(noCancel, tx)
		}
		if err == nil {
			err = o.setArrival(tx)
		}
		if err != nil {
			return nil, err
		}
		if size += o.size(); len(out) > 0 && size > room {
			break
		}
		out = append(out, o)
	}
	return out, nil
}

// loader puts observations together. What many share it reads once; each of its maps holds observations with the part that is of one table.
type loader struct {
	tx       *sql.Tx
	stmts    map[string]*sql.Stmt
	messages map[int64]*Observation
	series   map[int64]*Observation
	forms    map[int64]*Observation
	unpack   unpacker

	row   int64  // the row of readings that was read last, as neighbours are often of one; 0 for none
	cells []byte // of it
}

func (l *loader) close() {
	for _, s := range l.stmts {
		_ = s.Close()
	}
}

// query prepares what is asked more than once.
func (l *loader) query(query string, args ...any) (*sql.Rows, error) {
	if l.stmts[query] == nil {
		s, err := l.tx.PrepareContext(noCancel, query)
		if err != nil {
			return nil, err
		}
		l.stmts[query] = s
	}
	return l.stmts[query].QueryContext(noCancel, args...)
}

func (l *loader) waveform(p *place) (o Observation, err error) {
	rows, err := l.query(selectWaveform, p.Message, p.Index)
	if err != nil {
		return o, err
	}
	if !rows.Next() {
		err = sql.ErrNoRows
	} else {
		o, err = scanWaveform(rows, &l.unpack)
	}
	return o, errors.Join(err, rows.Err(), rows.Close())
}

const (
	selectSeries = `SELECT s.id, s.mdc, s.code_system, s.code, s.ucum, COALESCE(p.patient, ''), COALESCE(p.system, ''), COALESCE(p.value, '')
		FROM series s LEFT JOIN subjects p ON p.id = s.subject WHERE s.kind <> 2 AND s.id = $1`
	selectForm = "SELECT id, code_name, type, unit, sub_id, limits, device, status, flags, bed FROM forms WHERE id = $1"
)

// selectMessages is the query for n messages.
func selectMessages(n int) string {
	return `SELECT m.id, m.key, m.time, src.gateway, src.source, g.location, g.processing, m.wall, m.mono, m.journaled
		FROM messages m JOIN sources src ON src.id = m.source JOIN origins g ON g.id = m.origin WHERE m.id IN (` + sqldb.Parameters(1, n) + ")"
}

// reading puts the first of places, which is a reading, together; and reads the messages of those behind it if it must.
func (l *loader) reading(places []place) (o Observation, err error) {
	p := places[0] // a copy, so that what is not returned holds no texts
	if p.row != 0 {
		if err := l.texts(&p); err != nil {
			return o, err
		}
	}
	if l.messages[p.Message] == nil {
		if err := l.readMessages(places); err != nil {
			return o, err
		}
	}
	if err := l.one(l.series, p.series, selectSeries, func(s *Observation) []any {
		return []any{&s.Code.MDC, &s.Code.Sys, &s.Code.ID, &s.Unit.UCUM, &s.Patient.ID, &s.Patient.System, &s.Patient.Value}
	}); err != nil {
		return o, err
	}
	if err := l.one(l.forms, p.form, selectForm, func(f *Observation) []any {
		return []any{&f.Code.Name, &f.Type, &f.Unit.Sent, &f.SubID, &f.Limits, &f.Device, &f.Status, &f.Flags, &f.Bed}
	}); err != nil {
		return o, err
	}
	m, s, f := l.messages[p.Message], l.series[p.series], l.forms[p.form]
	if m == nil {
		return o, fmt.Errorf("the message of the reading at %s: %w", p.Position, sql.ErrNoRows)
	}
	o = *m
	o.position, o.At, o.Value, o.Marks = p.Position, p.At, p.value, p.marks
	o.ID = fmt.Sprintf("%s-%d", m.ID, p.Index)
	if p.time.Valid {
		o.Time = p.time.String
	}
	o.Code, o.Unit.UCUM, o.Patient = s.Code, s.Unit.UCUM, s.Patient
	o.Code.Name, o.Type, o.Unit.Sent, o.SubID, o.Limits, o.Device, o.Status, o.Flags, o.Bed = f.Code.Name, f.Type, f.Unit.Sent, f.SubID, f.Limits, f.Device, f.Status, f.Flags, f.Bed
	return o, nil
}

// texts reads those that the walk left in their row.
func (l *loader) texts(p *place) error {
	if l.row != p.row {
		l.row = 0
		rows, err := l.query("SELECT cells FROM readings WHERE id = $1", p.row)
		if err != nil {
			return err
		}
		if !rows.Next() {
			return errors.Join(rows.Err(), rows.Close(), sql.ErrNoRows)
		}
		if err := errors.Join(rows.Scan(&l.cells), rows.Close()); err != nil {
			return err
		}
		l.row = p.row
	}
	found := false
	err := parseCells(l.cells, func(_ int, c *cell) bool {
		if found = int64(c.index) == p.Index; found {
			p.takeTexts(c)
		}
		return !found
	})
	if err == nil && !found {
		err = errCells
	}
	return err
}

// one reads the row of that id into the map, unless it is there.
func (l *loader) one(into map[int64]*Observation, id int64, query string, fields func(*Observation) []any) error {
	if into[id] != nil {
		return nil
	}
	rows, err := l.query(query, id)
	if err != nil {
		return err
	}
	if !rows.Next() {
		return errors.Join(rows.Err(), rows.Close(), sql.ErrNoRows)
	}
	o := &Observation{}
	if err := rows.Scan(append([]any{new(int64)}, fields(o)...)...); err != nil {
		return errors.Join(err, rows.Close())
	}
	into[id] = o
	return rows.Close()
}

// readMessages reads those of the next places. ID is the key alone.
func (l *loader) readMessages(places []place) error {
	clear(l.messages)
	var wanted []any
	for i := range places {
		p := &places[i]
		if _, has := l.messages[p.Message]; p.waveform || has {
			continue
		}
		l.messages[p.Message] = nil
		if wanted = append(wanted, p.Message); len(wanted) == messagesAtOnce {
			break
		}
	}
	rows, err := l.query(selectMessages(len(wanted)), wanted...)
	if err != nil {
		return err
	}
	for rows.Next() {
		var id int64
		var key sql.RawBytes
		o := &Observation{}
		if err := rows.Scan(&id, &key, &o.Time, &o.Gateway, &o.Source, &o.Location, &o.Process, &o.Received.Wall, &o.Received.Mono, &o.Journaled); err != nil {
			return errors.Join(err, rows.Close())
		}
		o.ID = hex.EncodeToString(key)
		l.messages[id] = o
	}
	return errors.Join(rows.Err(), rows.Close())
}
