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

// Migrations is the schema of the list of nodes.
func Migrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "nodes", Version: 1, SQL: nodes1}}
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
}

// Add enters a node in tx, before its certificate is handed out: ErrExists while there is one of that name.
func Add(tx *sql.Tx, n Node) error {
	if err := spiffe.ValidName(n.Name); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if _, err := tx.Exec("DELETE FROM nodes WHERE name = $1 AND removed <> 0", n.Name); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	added, err := tx.Exec("INSERT INTO nodes (name, spki, hosts, login, added, removed) VALUES ($1, $2, $3, $4, $5, 0) ON CONFLICT (name) DO NOTHING",
		n.Name, n.SPKI[:], strings.Join(n.Hosts, " "), n.Login, n.Added.UnixMilli())
	if err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	if k, err := added.RowsAffected(); err != nil || k != 1 {
		return errors.Join(fmt.Errorf("node %s: %w; give the new one another name, or remove the former one first", n.Name, ErrExists), err)
	}
	return nil
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

const columns = "name, spki, hosts, login, added"

func scan(row interface{ Scan(...any) error }, name string) (n Node, err error) {
	var spki []byte
	var hosts string
	var added int64
	err = row.Scan(&n.Name, &spki, &hosts, &n.Login, &added)
	if errors.Is(err, sql.ErrNoRows) {
		return n, fmt.Errorf("node %.64q: %w", name, ErrUnknown)
	}
	if err != nil {
		return n, fmt.Errorf("node %.64q: %w", name, err)
	}
	copy(n.SPKI[:], spki)
	n.Hosts, n.Added = strings.Fields(hosts), time.UnixMilli(added).UTC()
	return n, nil
}
