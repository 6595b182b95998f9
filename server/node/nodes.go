package node

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"wardlink/internal/spiffe"
	"wardlink/server/sqldb"
)

//go:embed nodes_0001.sql
var nodes1 string

//go:embed nodes_0002.sql
var nodes2 string

// Migrations is the schema of the list of nodes.
func Migrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "nodes", Version: 1, SQL: nodes1}, {Domain: "nodes", Version: 2, SQL: nodes2}}
}

// What callers branch on.
var (
	ErrUnknown = errors.New("no such node")
	ErrExists  = errors.New("there is such a node")
)

// Node is one ingest node.
type Node struct {
	Name  string    // SPIFFE name
	SPKI  [32]byte  // SHA-256 of its key
	Hosts []string  // of its gateways' port
	Login string    // its role in the database
	Added time.Time //

	// NotBefore and NotAfter are the term of its newest certificate; zero: it has shown none since this is kept.
	NotBefore, NotAfter time.Time
}

// Add enters a node in tx, before its certificate is handed out: ErrExists while there is one of that name.
func Add(tx *sql.Tx, n Node) error {
	if err := spiffe.ValidName(n.Name); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if _, err := tx.Exec("DELETE FROM nodes WHERE name = $1 AND removed <> 0", n.Name); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	added, err := tx.Exec("INSERT INTO nodes (name, spki, hosts, login, added, removed, not_before, not_after) VALUES ($1, $2, $3, $4, $5, 0, $6, $7) ON CONFLICT (name) DO NOTHING",
		n.Name, n.SPKI[:], strings.Join(n.Hosts, " "), n.Login, n.Added.UnixMilli(), millis(n.NotBefore), millis(n.NotAfter))
	if err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	if k, err := added.RowsAffected(); err != nil || k != 1 {
		return errors.Join(fmt.Errorf("node %s: %w; give the new one another name, or remove the former one first", n.Name, ErrExists), err)
	}
	return nil
}

// Certified keeps the term of the certificate that a node shows, if it ends after the one that is kept: a node that has just renewed may yet show the former.
func Certified(ctx context.Context, db *sqldb.DB, name string, from, until time.Time) error {
	return db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE nodes SET not_before = $1, not_after = $2 WHERE name = $3 AND removed = 0 AND not_after < $2", millis(from), millis(until), name)
		if err != nil {
			return fmt.Errorf("node %.64q: %w", name, err)
		}
		return nil
	})
}

// Remove takes a node out in tx: ErrUnknown when there is none. From its commit on its certificate counts for nothing.
func Remove(tx *sql.Tx, name string, now time.Time) (n Node, err error) {
	if n, err = scan(tx.QueryRow("SELECT "+columns+" FROM nodes WHERE name = $1 AND removed = 0", name), name); err != nil {
		return n, err
	}
	_, err = tx.Exec("UPDATE nodes SET removed = $1 WHERE name = $2", now.UnixMilli(), name)
	return n, err
}

// Get gives one node: ErrUnknown when there is none, or it was removed.
func Get(ctx context.Context, db *sqldb.DB, name string) (Node, error) {
	return scan(db.QueryRow(ctx, "SELECT "+columns+" FROM nodes WHERE name = $1 AND removed = 0", name), name)
}

// List gives all nodes by name.
func List(ctx context.Context, db *sqldb.DB) (out []Node, err error) {
	rows, err := db.Query(ctx, "SELECT "+columns+" FROM nodes WHERE removed = 0 ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("nodes: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		n, err := scan(rows, "")
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("nodes: %w", err)
	}
	return out, nil
}

const columns = "name, spki, hosts, login, added, not_before, not_after"

func scan(row interface{ Scan(...any) error }, name string) (n Node, err error) {
	var spki []byte
	var hosts string
	var added, from, until int64
	err = row.Scan(&n.Name, &spki, &hosts, &n.Login, &added, &from, &until)
	if errors.Is(err, sql.ErrNoRows) {
		return n, fmt.Errorf("node %.64q: %w", name, ErrUnknown)
	}
	if err != nil {
		return n, fmt.Errorf("node %.64q: %w", name, err)
	}
	copy(n.SPKI[:], spki)
	n.Hosts, n.Added, n.NotBefore, n.NotAfter = strings.Fields(hosts), time.UnixMilli(added).UTC(), instant(from), instant(until)
	return n, nil
}

// millis is an instant as the tables have it: 0 for the zero one.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
