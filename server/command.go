package server

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"wardlink/audit"
	"wardlink/server/node"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
)

// openBeside opens the database of dir for a command that works beside the server: registry, nodes and outbox.
func openBeside(dir string) (*sqldb.DB, error) {
	c, err := LoadConfig(dir)
	if err != nil {
		return nil, err
	}
	path, err := c.database(dir)
	if err != nil {
		return nil, err
	}
	return sqldb.OpenBeside(path, slices.Concat(sqldb.OutboxMigrations(), registry.Migrations(), node.Migrations())...)
}

// leave puts an event of a command into the outbox: the journal is the running server's alone, the database is not. also, where it is not
// nil, is part of the same transaction.
func leave(ctx context.Context, dir string, ev audit.Event, also func(*sql.Tx) error) (err error) {
	db, err := openBeside(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	now := time.Now()
	ev.ID, ev.Time, ev.Actor, ev.Outcome = commandID(now), now.UnixMilli(), audit.Actor{ID: "server"}, audit.Success
	return db.Write(ctx, func(tx *sql.Tx) error {
		if also != nil {
			if err := also(tx); err != nil {
				return err
			}
		}
		return sqldb.AddEvent(tx, ev)
	})
}

// commandID is the id of an event of a command that has no journal to count with: node 0, which no journal of ours has, and a random counter.
func commandID(now time.Time) (id audit.EventID) {
	binary.BigEndian.PutUint32(id[4:], uint32(now.Unix()))
	rand.Read(id[8:])
	return id
}
