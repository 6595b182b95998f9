package records

import (
	"context"
	"crypto/sha256"
	"database/sql"
	_ "embed"
	"encoding/hex"
	"errors"
	"strings"

	"wardlink/server/sqldb"
)

//go:embed long_0001.sql
var long1 string

func longMigrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "records_long", Version: 1, SQL: long1}}
}

// Codes, patients and sources are found by indexes over their texts, and a device may say a text of 64 KB in the place of any. One that is longer
// than maxKey stands in a table of its own, and a reference to it where it belongs: longMark and the SHA-256 of the text. 250 bytes can be
// 1250 once those that PostgreSQL cannot take are escaped, and two such texts fit into an entry of its indexes, 2704 bytes.
const (
	maxKey   = 250
	longMark = "\uFDD1" // a noncharacter of Unicode; a text that begins so is long whatever its length
)

// keyOf is what stands for a text in an index.
func keyOf(text string) (key string, long bool) {
	if len(text) <= maxKey && !strings.HasPrefix(text, longMark) {
		return text, false
	}
	hash := sha256.Sum256([]byte(text))
	return longMark + hex.EncodeToString(hash[:]), true
}

// keep gives what stands for each of the texts, keeping those that are long.
func keep(tx *sql.Tx, texts ...*string) error {
	for _, t := range texts {
		key, long := keyOf(*t)
		if !long {
			continue
		}
		if _, err := tx.Exec("INSERT INTO long_texts (ref, text) VALUES ($1, $2) ON CONFLICT (ref) DO NOTHING", key, *t); err != nil {
			return err
		}
		*t = key
	}
	return nil
}

// queryRow is that of a transaction or of the reader pool.
type queryRow func(ctx context.Context, query string, args ...any) *sql.Row

// expand puts long texts in the place of their references.
func expand(ctx context.Context, row queryRow, texts ...*string) error {
	for _, t := range texts {
		if !strings.HasPrefix(*t, longMark) {
			continue
		}
		err := row(ctx, "SELECT text FROM long_texts WHERE ref = $1", *t).Scan(t)
		if err != nil && !errors.Is(err, sql.ErrNoRows) { // a text of before there were references stays as it is
			return err
		}
	}
	return nil
}

// expand puts the long texts of an observation in their places.
func (o *Observation) expand(ctx context.Context, tx *sql.Tx) error {
	return expand(ctx, tx.QueryRowContext, &o.Code.Sys, &o.Code.ID, &o.Unit.UCUM, &o.Source, &o.Patient.Value)
}

// longTextsOf are the references of a subject and of its series.
func longTextsOf(tx *sql.Tx, subject int64) (refs []string, err error) {
	rows, err := tx.Query(`SELECT value, '', '' FROM subjects WHERE id = $1 UNION SELECT code_system, code, ucum FROM series WHERE subject = $1`, subject)
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var texts [3]string
		if err := rows.Scan(&texts[0], &texts[1], &texts[2]); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		for _, t := range texts {
			if strings.HasPrefix(t, longMark) {
				refs = append(refs, t)
			}
		}
	}
	return refs, errors.Join(rows.Err(), rows.Close())
}

// dropLongTexts deletes those that nothing refers to any more.
func dropLongTexts(tx *sql.Tx, refs []string) error {
	for _, ref := range refs {
		if _, err := tx.Exec(`DELETE FROM long_texts WHERE ref = $1 AND NOT EXISTS (SELECT 1 FROM subjects WHERE value = $1)
			AND NOT EXISTS (SELECT 1 FROM series WHERE code = $1 OR code_system = $1 OR ucum = $1) AND NOT EXISTS (SELECT 1 FROM sources WHERE source = $1)`, ref); err != nil {
			return err
		}
	}
	return nil
}
