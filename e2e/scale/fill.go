package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
	"wardlink/server/sqldb"
)

// copies is how many parts of the same length a filled database has: the first comes by the real way (sealed, journaled, opened, stored), the others
// are its rows again, each later by the length of a part and under other keys. So each row has the size and the neighbours that the real way gives
// it, and ten million of them take minutes.
const copies = 24

// fill makes a database with the asked-for number of observations, of as many monitors as there are gateways, up to now.
func fill(ctx context.Context, p plan) (err error) {
	s, err := open(p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.enrol(ctx); err != nil {
		return err
	}
	each := max(p.total/copies/len(numerics)/p.gateways/p.messages, 1) // batches of a gateway in one part
	part := time.Duration(each*p.messages) * p.spacing
	todo, err := s.prepare(each*p.gateways, time.Now().Add(-copies*part).Add(time.Duration(p.messages)*p.spacing), p.spacing)
	if err != nil {
		return err
	}
	if err := s.journalAll(ctx, todo, 0); err != nil {
		return err
	}
	r, stop, err := s.consume(ctx, nil)
	if err != nil {
		return err
	}
	(&lagWatch{}).watch(ctx, s, r, int64(len(todo)))
	if err := stop(); err != nil {
		return err
	}
	// They came when they were said, not all now: retention goes by that.
	if err := s.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE messages SET journaled = wall, aged = wall")
		return err
	}); err != nil {
		return err
	}
	for k := 1; k < copies && ctx.Err() == nil; k++ {
		progress("copy %d of %d", k, copies-1)
		if err := s.repeat(ctx, part*time.Duration(k), int64(k)); err != nil {
			return err
		}
	}
	st, err := r.Stats(ctx)
	if err != nil {
		return err
	}
	bytes, _, wal, err := s.databaseSizes(ctx)
	if err != nil {
		return err
	}
	row("observations; patients; hours", fmt.Sprintf("%d; %d; %.1f", st.Observations, p.gateways, (copies*part).Hours()), "")
	row("database bytes/observation", fmt.Sprintf("%.1f", float64(bytes)/float64(st.Observations)), "")
	row("write-ahead log", fmt.Sprintf("%.1f MB", float64(wal)/1e6), "bounded")
	return nil
}

// repeat stores the first part's rows again, later and under other keys. batches are left alone: their rows become ranges within days.
func (s *stage) repeat(ctx context.Context, later time.Duration, k int64) error {
	random := "randomblob(16)"
	if sqldb.IsPostgres(s.database) {
		random = "uuid_send(gen_random_uuid())"
	}
	return s.db.Write(ctx, func(tx *sql.Tx) error {
		var first, last int64 // ids of the first part
		if err := tx.QueryRow("SELECT MIN(m.id), MIN(m.id) + t.messages / $1 - 1 FROM messages m, records_totals t GROUP BY t.messages", k).Scan(&first, &last); err != nil {
			return err
		}
		ms, ids := later.Milliseconds(), (last-first+1)*k
		if _, err := tx.Exec(`INSERT INTO messages (id, key, source, digest, copy, stream, number, boot, subject, origin, control, sent_at, time, wall, mono, journaled, lane, aged)
			SELECT id + $1, `+random+`, source, digest, copy, stream, number + $1, boot, subject, origin, control, sent_at, time, wall + $2, mono + $2, journaled + $2, lane, aged + $2
			FROM messages WHERE id BETWEEN $3 AND $4 ORDER BY id`, ids, ms, first, last); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO readings (id, layout, at, unread, count, cells)
			SELECT id + CAST($1 AS BIGINT) * 1048576, layout, at + $2, unread, count, cells FROM readings WHERE id BETWEEN CAST($3 AS BIGINT) * 1048576 AND CAST($4 AS BIGINT) * 1048576 + 1048575 ORDER BY id`, ids, ms, first, last); err != nil {
			return err
		}
		var n int64
		if err := tx.QueryRow("SELECT CAST(SUM(count) AS BIGINT) FROM readings WHERE id BETWEEN CAST($1 AS BIGINT) * 1048576 AND CAST($2 AS BIGINT) * 1048576 + 1048575", first, last).Scan(&n); err != nil {
			return err
		}
		_, err := tx.Exec("UPDATE records_totals SET messages = messages + $1, observations = observations + $2", last-first+1, n)
		return err
	})
}
