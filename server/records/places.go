package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// placesAtOnce are the readings that one statement looks for.
const placesAtOnce = 32

// loadPlaces reads what stands at the given places, in that order, until it is more than room bytes; what is left of places is not
// returned. The first is in any case.
func loadPlaces(ctx context.Context, tx *sql.Tx, places []place, room int) ([]Observation, error) {
	waveform, err := tx.PrepareContext(noCancel, selectWaveform)
	if err != nil {
		return nil, err
	}
	defer func() { _ = waveform.Close() }()
	readings := readingsAhead{tx: tx, found: make(map[Position]*Observation)}
	defer readings.close()
	var u unpacker
	var out []Observation
	size := 0
	for i, p := range places {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var o Observation
		if p.waveform {
			o, err = scanWaveform(waveform.QueryRowContext(noCancel, p.Message, p.Index), &u)
		} else {
			o, err = readings.at(places[i:])
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

// readingsAhead reads readings before they are asked for, some at once.
type readingsAhead struct {
	tx    *sql.Tx
	full  *sql.Stmt // of placesAtOnce; nil until it is needed
	found map[Position]*Observation
}

func (r *readingsAhead) close() {
	if r.full != nil {
		_ = r.full.Close()
	}
}

// at gives the first of places, which is a reading, and reads those behind it if it must.
func (r *readingsAhead) at(places []place) (Observation, error) {
	if r.found[places[0].Position] == nil {
		clear(r.found)
		var wanted []any
		for _, p := range places {
			if !p.waveform && len(wanted) < 2*placesAtOnce {
				wanted = append(wanted, p.Message, p.Index)
			}
		}
		if err := r.read(wanted); err != nil {
			return Observation{}, err
		}
	}
	o := r.found[places[0].Position]
	if o == nil {
		return Observation{}, fmt.Errorf("the reading at %s: %w", places[0].Position, sql.ErrNoRows)
	}
	return *o, nil
}

func (r *readingsAhead) read(wanted []any) (err error) {
	query := func() (*sql.Rows, error) {
		return r.tx.QueryContext(noCancel, wantedObservations(len(wanted)/2), wanted...)
	}
	if len(wanted) == 2*placesAtOnce {
		if r.full == nil {
			if r.full, err = r.tx.PrepareContext(noCancel, wantedObservations(placesAtOnce)); err != nil {
				return err
			}
		}
		query = func() (*sql.Rows, error) { return r.full.QueryContext(noCancel, wanted...) }
	}
	rows, err := query()
	if err != nil {
		return err
	}
	for rows.Next() {
		o, err := scanObservation(rows)
		if err != nil {
			return errors.Join(err, rows.Close())
		}
		r.found[o.position] = &o
	}
	return errors.Join(rows.Err(), rows.Close())
}

// wantedObservations is the query for n places: message and index of each.
func wantedObservations(n int) string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf("(CAST($%d AS BIGINT), CAST($%d AS BIGINT))", 2*i+1, 2*i+2)
	}
	return "WITH wanted (message, idx) AS (VALUES " + strings.Join(values, ", ") + ") " + placedObservations
}
