package pgjournal

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"wardlink/server/journal"
	"wardlink/server/sqldb"
)

// Check reads the whole journal of a database in one snapshot, while it may be in use, and compares it with POSTGRES.md's invariants. It
// writes nothing. The error says that the check could not be made; what it found wrong is in the Report.
func Check(ctx context.Context, url string) (journal.Report, error) {
	r := journal.Report{Cursors: map[string]uint64{}}
	cfg, err := sqldb.NativeConfig(url, map[string]string{"statement_timeout": "0"})
	if err != nil {
		return r, fmt.Errorf("check journal: %w", err)
	}
	conn, err := sqldb.ConnectNative(ctx, cfg)
	if err != nil {
		return r, fmt.Errorf("check journal: %w", sqldb.Explain(url, err))
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		return check(ctx, tx, &r)
	})
	if err != nil {
		return r, fmt.Errorf("check journal: %w", sqldb.Explain(url, err))
	}
	return r, nil
}

func check(ctx context.Context, tx pgx.Tx, r *journal.Report) error {
	var base int64
	if err := tx.QueryRow(ctx, "SELECT base, pg_total_relation_size('journal_groups') + pg_total_relation_size('journal_pieces') FROM journal_state").Scan(&base, &r.Disk); err != nil {
		return err
	}
	parts := map[int64]bool{}
	var first, last, part, filled, seq int64
	var name string
	var packed []byte
	rows, _ := tx.Query(ctx, "SELECT first FROM journal_parts ORDER BY first")
	if _, err := pgx.ForEachRow(rows, []any{&part}, func() error { parts[part] = true; return nil }); err != nil {
		return err
	}
	r.Segments, r.First, r.Last = len(parts), uint64(base)+1, uint64(base)
	formerPart, sum := int64(0), int64(0)
	rows, _ = tx.Query(ctx, `SELECT first, last, part, filled, coalesce(bytes, ''), lead(first) OVER (ORDER BY first, piece) IS DISTINCT FROM first
		FROM journal_groups LEFT JOIN journal_pieces USING (first) ORDER BY first, piece`)
	var piece []byte
	var whole bool
	if _, err := pgx.ForEachRow(rows, []any{&first, &last, &part, &filled, &piece, &whole}, func() error {
		if packed = append(packed, piece...); !whole {
			return nil
		}
		name := fmt.Sprintf("group %d", first)
		size := int64(0)
		count, err := journal.Unpack(uint64(first), packed, func(e journal.Entry) bool {
			size += int64(e.Size())
			return true
		})
		packed = packed[:0]
		switch {
		case err != nil:
			r.Find(name, "%v", err)
		case int64(count) != last-first+1:
			r.Find(name, "its row says that it ends with %d, it holds %d entries", last, count)
		}
		switch {
		case r.Entries == 0:
			r.First = uint64(first)
		case first != int64(r.Last)+1:
			r.Find(name, "entries %d to %d are missing before it", r.Last+1, first-1)
		}
		if !parts[part] || part > first {
			r.Find(name, "its part %d is not there", part)
		}
		if part != formerPart {
			formerPart, sum = part, filled-size // a part whose first groups are disposed of
		}
		if sum += size; sum != filled && err == nil {
			r.Find(name, "its part has %d bytes up to it, its row says %d", sum, filled)
		}
		r.Last = uint64(last)
		r.Entries += uint64(last - first + 1)
		r.Bytes += uint64(size)
		return nil
	}); err != nil {
		return err
	}
	var strays int64
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM journal_pieces p WHERE NOT EXISTS (SELECT FROM journal_groups g WHERE g.first = p.first)").Scan(&strays); err != nil {
		return err
	}
	if strays > 0 {
		r.Find("pieces", "%d belong to no group", strays)
	}
	rows, _ = tx.Query(ctx, "SELECT consumer, seq FROM journal_cursors")
	_, err := pgx.ForEachRow(rows, []any{&name, &seq}, func() error {
		r.Cursors[name] = uint64(seq)
		if uint64(seq) > r.Last {
			r.Find("cursor", "%s has passed entry %d, the last is %d", name, seq, r.Last)
		}
		return nil
	})
	return err
}
