package registry

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"wardlink/server/sqldb"
)

var (
	//go:embed sessions_0001.sql
	sessions1 string
	//go:embed nodes.sql
	nodesPostgres string // what an ingest node's login may see and call
	//go:embed nodes_0002.sql
	nodesPostgres2 string
)

// nodeMigrations come behind all of the registry's tables, of which they make views: domains are applied in the order of their names.
func nodeMigrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "wards_sessions", Version: 1, SQL: sessions1, Postgres: nodesPostgres}, {Domain: "wards_sessions", Version: 2, Postgres: nodesPostgres2}}
}

// View is the registry as an ingest node sees it: who is admitted, and nothing else. It writes nothing, and its database may be one that can
// be read in the schema ingest_view alone. It is safe for concurrent use.
type View struct{ r Registry }

// NewView makes the view of a database, which an ingest node opens by sqldb.OpenBeside with its own login and Migrations.
func NewView(db *sqldb.DB) *View { return &View{Registry{db: db, now: time.Now}} }

// AdmitKey is Registry.AdmitKey. The reasons in its errors are blank: an ingest node is not told why a gateway was cut off.
func (v *View) AdmitKey(ctx context.Context, gateway string, key [32]byte) (Admission, error) {
	return v.r.AdmitKey(ctx, gateway, key)
}

// Revision is Registry.Revision.
func (v *View) Revision(ctx context.Context) (int64, error) { return v.r.Revision(ctx) }

// CutOff is Registry.CutOff.
func (v *View) CutOff(ctx context.Context) ([]CutOff, error) { return v.r.CutOff(ctx) }

// HoldsNewest is Registry.HoldsNewest.
func (v *View) HoldsNewest(ctx context.Context, gateway string, key [32]byte, serial string) (bool, error) {
	return v.r.HoldsNewest(ctx, gateway, key, serial)
}

// Sessions counts the sessions of gateways among all nodes of a cell, in its PostgreSQL database: so a session that begins at one node ends
// the same gateway's at another. It is safe for concurrent use.
type Sessions struct{ db *sqldb.DB }

// NewSessions needs a PostgreSQL database with Migrations, opened by its owner or by an ingest node's login. On SQLite there is one node.
func NewSessions(db *sqldb.DB) *Sessions { return &Sessions{db} }

// Bump begins a gateway's next session and gives its generation, greater than that of each session before. It is durable when it returns. An
// error says that no session may begin: also for a gateway that is not registered.
func (s *Sessions) Bump(ctx context.Context, gateway string) (generation int64, err error) {
	if err := s.db.Call(ctx, "SELECT public.bump_session($1)", []any{gateway}, &generation); err != nil {
		return 0, fmt.Errorf("session of gateway %.64q: %w", gateway, err)
	}
	return generation, nil
}

// Passed gives those of live sessions, generation by gateway, that are not their gateway's newest any more. It is one query, whatever their
// number.
func (s *Sessions) Passed(ctx context.Context, live map[string]int64) (gateways []string, err error) {
	if len(live) == 0 {
		return nil, nil
	}
	ids, generations := make([]string, 0, len(live)), make([]int64, 0, len(live))
	for id, generation := range live {
		ids, generations = append(ids, id), append(generations, generation)
	}
	rows, err := s.db.Query(ctx, `SELECT l.gateway FROM unnest($1::TEXT[], $2::BIGINT[]) AS l (gateway, generation)
		JOIN sessions s ON s.gateway = l.gateway COLLATE "C" WHERE s.generation > l.generation`, ids, generations)
	if err != nil {
		return nil, fmt.Errorf("sessions: %w", err)
	}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, errors.Join(fmt.Errorf("sessions: %w", err), rows.Close())
		}
		gateways = append(gateways, id)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, fmt.Errorf("sessions: %w", err)
	}
	return gateways, nil
}
