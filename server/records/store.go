package records

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
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
	Waveform    bool // it is of samples
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
		p, err := placeOf(ctx, tx, message, uint32(index))
		if err != nil {
			return err
		}
		if p == nil { // it may be a chunk of a waveform
			p = &place{Position: Position{Message: message, Index: index}, waveform: true}
		}
		found, err := loadPlaces(ctx, tx, []place{*p}, 0)
		if err != nil {
			return err
		}
		o = found[0]
		return nil
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
