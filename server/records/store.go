package records

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"wardlink/internal/secret"
	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

// ErrNotFound means that no such patient or observation is stored.
var ErrNotFound = errors.New("not found")

// Store reads what Records keep. It is safe for concurrent use.
type Store struct {
	db  *sqldb.DB
	key secret.Bytes
}

// NewStore reads the records in db, whose patients' ids were made with key.
func NewStore(db *sqldb.DB, key secret.Bytes) *Store { return &Store{db: db, key: key} }

// Patient is a subject of observations: an identifier and who assigned it, nothing else.
type Patient struct {
	ID     string // PatientID
	System string // URI, or ""
	Value  string
}

// PatientID is the id of the patient with that identifier, whether or not anything of it is stored.
func (s *Store) PatientID(system, value string) string { return PatientID(s.key, system, value) }

// Patient gives one patient by id, or ErrNotFound.
func (s *Store) Patient(ctx context.Context, id string) (p Patient, err error) {
	err = s.db.QueryRow(ctx, "SELECT patient, system, value FROM subjects WHERE patient = $1", id).Scan(&p.ID, &p.System, &p.Value)
	if errors.Is(err, sql.ErrNoRows) {
		return Patient{}, ErrNotFound
	}
	if err == nil {
		err = expand(ctx, s.db.QueryRow, &p.Value)
	}
	if err != nil {
		return Patient{}, fmt.Errorf("records: %w", err)
	}
	return p, nil
}

// Patients gives the patients with an identifier: those of one system, or of any system when system is nil. At most limit.
func (s *Store) Patients(ctx context.Context, system *string, value string, limit int) ([]Patient, error) {
	if system != nil {
		p, err := s.Patient(ctx, s.PatientID(*system, value))
		if errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		return []Patient{p}, err
	}
	key, _ := keyOf(value)
	rows, err := s.db.Query(ctx, "SELECT patient, system FROM subjects WHERE value IN ($1, $2) ORDER BY patient LIMIT $3", key, value, limit)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []Patient
	for rows.Next() {
		p := Patient{Value: value}
		if err := rows.Scan(&p.ID, &p.System); err != nil {
			return nil, fmt.Errorf("records: %w", err)
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// Observation is one stored reading, or one chunk of a waveform, with all that came with it.
type Observation struct {
	ID        string
	At        int64 // Unix milliseconds: the device's time, or when the gateway received it if that is unreadable
	Time      string
	Value     string
	Code      telemetry.Code
	Unit      telemetry.Unit
	Type      string
	SubID     string
	Limits    string
	Device    string
	Status    string
	Flags     string
	Marks     telemetry.Marks
	Patient   Patient // zero when the device knew no patient
	Gateway   string
	Source    string
	Location  string
	Bed       string          // that the gateway's configuration binds the device to; "" for none
	Process   string          // MSH-11
	Received  telemetry.Stamp // when the gateway had the message, by its own clocks
	Arrived   *Time           // that by the hospital's clock, where Time could not be read and it is known; else nil
	Journaled int64           // Unix milliseconds, server's clock

	Waveform *Waveform // of a chunk of samples, which has no Value and no Limits; else nil

	position Position
}

// Position is a place in the order of a search's results: later times first, and among equal times what was stored later.
type Position struct {
	At      int64
	Message int64
	Index   int64
}

// Position of the observation in the order of search results.
func (o *Observation) Position() Position { return o.position }

// Series is one kind of reading of one patient.
type Series struct {
	Code telemetry.Code // without the name
	UCUM string         // unit, "" when it is not known or there is none

	UnitUnknown bool // its readings have a unit that is not known, or lack one that they need
}

// Kinds of series; see sqlite_0001.sql.
const (
	kindReading     = 0
	kindUnitUnknown = 1
	kindPart        = 2
)

// Query selects observations.
type Query struct {
	Patients  []string // ids; nothing is found for none
	NoPatient bool     // instead: readings of devices that knew no patient
	Match     func(Series) bool
	From, To  *int64    // Unix milliseconds, From <= at < To; nil is no bound
	After     *Position // results behind this one only
	Limit     int       // at least 1
	Room      int       // bytes that the results may take in an answer, about; 0 is no bound. A page has at least one
}

// Page is one page of results.
type Page struct {
	Observations []Observation
	More         bool // there are results behind the last one
}

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

// walked is one series that a search walks along.
type walked struct {
	id       int64
	waveform bool
}

func matching(ctx context.Context, tx *sql.Tx, q *Query) (ids []walked, err error) {
	subjects := "SELECT 0"
	var args []any
	if !q.NoPatient {
		if len(q.Patients) == 0 {
			return nil, nil
		}
		subjects = "SELECT id FROM subjects WHERE patient IN (" + sqldb.Parameters(1, len(q.Patients)) + ")"
		for _, p := range q.Patients {
			args = append(args, p)
		}
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

// newest merges the heads of the series: one more than the limit, to know whether there is more. Once enough are known, later
// series are read only as far as they can still contribute.
func newest(ctx context.Context, tx *sql.Tx, series []walked, q *Query) ([]place, error) {
	want := q.Limit + 1
	from, to := int64(math.MinInt64), int64(math.MaxInt64)
	if q.From != nil {
		from = *q.From
	}
	if q.To != nil {
		to = *q.To
	}
	after := Position{At: math.MaxInt64, Message: math.MaxInt64, Index: math.MaxInt64}
	if q.After != nil {
		after = *q.After
	}
	var stmts [2]*sql.Stmt
	for i, table := range []string{"observations", "waveforms"} {
		stmt, err := tx.PrepareContext(ctx, `SELECT at, message, idx FROM `+table+`
			WHERE series = $1 AND at >= $2 AND at < $3 AND (at, message, idx) < ($4, $5, $6)
			ORDER BY at DESC, message DESC, idx DESC LIMIT $7`)
		if err != nil {
			return nil, err
		}
		defer func() { _ = stmt.Close() }()
		stmts[i] = stmt
	}
	var top []place
	for _, one := range series {
		stmt := stmts[0]
		if one.waveform {
			stmt = stmts[1]
		}
		rows, err := stmt.QueryContext(ctx, one.id, from, to, after.At, after.Message, after.Index, want)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			p := place{waveform: one.waveform}
			if err := rows.Scan(&p.At, &p.Message, &p.Index); err != nil {
				return nil, errors.Join(err, rows.Close())
			}
			top = append(top, p)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, err
		}
		slices.SortFunc(top, func(a, b place) int { return -a.compare(b.Position) })
		if len(top) >= want {
			top = top[:want]
			from = max(from, top[want-1].At)
		}
	}
	return top, nil
}

// place is a position and the table that it is in.
type place struct {
	Position
	waveform bool
}

func (p Position) compare(o Position) int {
	return cmp.Or(cmp.Compare(p.At, o.At), cmp.Compare(p.Message, o.Message), cmp.Compare(p.Index, o.Index))
}

// String is the position as one token of a URL.
func (p Position) String() string {
	return strconv.FormatInt(p.At, 36) + "." + strconv.FormatInt(p.Message, 36) + "." + strconv.FormatInt(p.Index, 36)
}

// ParsePosition reads what String gives.
func ParsePosition(s string) (p Position, err error) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return Position{}, errors.New("position: expected three numbers")
	}
	for i, dest := range []*int64{&p.At, &p.Message, &p.Index} {
		if *dest, err = strconv.ParseInt(parts[i], 36, 64); err != nil {
			return Position{}, errors.New("position: expected three numbers")
		}
	}
	if p.Message < 0 || p.Index < 0 {
		return Position{}, errors.New("position: out of range")
	}
	return p, nil
}

const (
	observationColumns = `SELECT m.key, o.at, COALESCE(o.time, m.time), o.value, o.marks, o.message, o.idx,
	s.mdc, s.code_system, s.code, f.code_name, f.type, f.unit, s.ucum, f.sub_id, f.limits, f.device, f.status, f.flags, f.bed,
	COALESCE(p.patient, ''), COALESCE(p.system, ''), COALESCE(p.value, ''),
	src.gateway, src.source, g.location, g.processing, m.wall, m.mono, m.journaled
	FROM `
	observationTables = `observations o%s JOIN messages m ON m.id = o.message JOIN series s ON s.id = o.series JOIN forms f ON f.id = o.form
	JOIN sources src ON src.id = m.source JOIN origins g ON g.id = m.origin LEFT JOIN subjects p ON p.id = s.subject
	WHERE s.kind <> 2`
)

var (
	selectObservation = observationColumns + fmt.Sprintf(observationTables, "") + " AND o.message = $1 AND o.idx = $2"
	// placedObservations reads those at some places at once: one by one, the statements cost more than the rows.
	placedObservations = observationColumns + "wanted w JOIN " + fmt.Sprintf(observationTables, " ON o.message = w.message AND o.idx = w.idx")
)

func scanObservation(row interface{ Scan(...any) error }) (o Observation, err error) {
	var key []byte
	err = row.Scan(&key, &o.At, &o.Time, &o.Value, &o.Marks, &o.position.Message, &o.position.Index,
		&o.Code.MDC, &o.Code.Sys, &o.Code.ID, &o.Code.Name, &o.Type, &o.Unit.Sent, &o.Unit.UCUM, &o.SubID, &o.Limits, &o.Device, &o.Status, &o.Flags, &o.Bed,
		&o.Patient.ID, &o.Patient.System, &o.Patient.Value,
		&o.Gateway, &o.Source, &o.Location, &o.Process, &o.Received.Wall, &o.Received.Mono, &o.Journaled)
	o.position.At = o.At
	o.ID = fmt.Sprintf("%x-%d", key, o.position.Index)
	return o, err
}

// Observation gives one observation by id, or ErrNotFound.
func (s *Store) Observation(ctx context.Context, id string) (o Observation, err error) {
	key, index, ok := parseObservationID(id)
	if !ok {
		return Observation{}, ErrNotFound
	}
	err = s.db.Read(ctx, func(tx *sql.Tx) error {
		var message int64
		if err := tx.QueryRowContext(ctx, "SELECT id FROM messages WHERE key = $1", key).Scan(&message); err != nil {
			return err
		}
		o, err = scanObservation(tx.QueryRowContext(ctx, selectObservation, message, index))
		if errors.Is(err, sql.ErrNoRows) {
			o, err = scanWaveform(tx.QueryRowContext(ctx, selectWaveform, message, index), new(unpacker))
		}
		if err == nil {
			err = o.expand(ctx, tx)
		}
		if err == nil {
			err = o.setArrival(tx)
		}
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return Observation{}, ErrNotFound
	}
	if err != nil {
		return Observation{}, fmt.Errorf("records: %w", err)
	}
	return o, nil
}

// parseObservationID takes an id apart: the message's key in lower-case hex, a hyphen, the observation's index.
func parseObservationID(id string) (key []byte, index int64, ok bool) {
	text, number, found := strings.Cut(id, "-")
	if !found || len(text) != 32 || strings.ToLower(text) != text {
		return nil, 0, false
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != number {
		return nil, 0, false
	}
	key, err = hex.DecodeString(text)
	return key, int64(n), err == nil
}
