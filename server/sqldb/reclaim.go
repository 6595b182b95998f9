package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
)

// What Reclaim gives back to the file system: from a quarter of the file on, in small steps. Less is not worth the moving of pages, since
// tomorrow's rows want the room again.
const (
	reclaimFrom  = 4    // part of the file that must be free
	reclaimPages = 2000 // of one step: 8 MB
)

// Reclaim ends what deleting begins. Deleted rows are overwritten in the file's pages (secure_delete), but the write-ahead log still holds
// the pages as they were; Reclaim folds it into the file and empties it. And if a good part of the file is free it gives that back, in
// steps between which other writers get their turn; a file that was made before incremental vacuum was on keeps its room and uses it
// again. An error leaves everything consistent; the next call goes on.
//
// On PostgreSQL it vacuums the tables from which rows were deleted, so that the room is used again and the rows are no longer in reach of
// any query. It promises no more: what files, the write-ahead log or an archive still hold of them is with whoever runs the database
// server (OPERATING.md, PostgreSQL).
func (d *DB) Reclaim(ctx context.Context) error {
	if d.url != "" {
		return explain(d.path, d.vacuum(ctx))
	}
	for {
		var free, pages int64
		if err := d.writer.QueryRowContext(ctx, "SELECT f.freelist_count, p.page_count FROM pragma_freelist_count f, pragma_page_count p").Scan(&free, &pages); err != nil {
			return explain(d.path, err)
		}
		var mode int
		if err := d.writer.QueryRowContext(ctx, "PRAGMA auto_vacuum").Scan(&mode); err != nil {
			return explain(d.path, err)
		}
		if mode != 2 || free < reclaimPages || free*reclaimFrom < pages {
			break
		}
		// Each row that the pragma gives is one page; it stops when nobody reads on.
		rows, err := d.writer.QueryContext(ctx, "PRAGMA incremental_vacuum("+strconv.Itoa(reclaimPages)+")")
		if err != nil {
			return explain(d.path, err)
		}
		for rows.Next() {
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return explain(d.path, err)
		}
	}
	return explain(d.path, d.emptyLog(ctx))
}

// vacuum takes a connection of its own: it may last, and the writer's is for writes.
func (d *DB) vacuum(ctx context.Context) (err error) {
	// A connection tells once a second at most what it deleted, or when it was idle for 10 s: without this, a run's last deletes would not be
	// among what is asked for here.
	if _, err := d.writer.ExecContext(ctx, "SELECT pg_stat_force_next_flush()"); err != nil {
		return err
	}
	rows, err := d.Query(ctx, "SELECT quote_ident(relname) FROM pg_stat_user_tables WHERE schemaname = 'public' AND n_dead_tup > 0")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var tables []string
	for rows.Next() {
		var table string
		if err := rows.Scan(&table); err != nil {
			return err
		}
		tables = append(tables, table)
	}
	if err := rows.Err(); err != nil || len(tables) == 0 {
		return err
	}
	conn, err := openPostgres(d.url, 1, map[string]string{"statement_timeout": "0"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	for _, table := range tables {
		if _, err := conn.ExecContext(ctx, "VACUUM (SKIP_LOCKED) public."+table); err != nil {
			return err
		}
	}
	return nil
}

// emptyLog folds the write-ahead log into the file and empties it. It waits for readers but a moment, since all writers wait with it.
func (d *DB) emptyLog(ctx context.Context) (err error) {
	conn, err := d.writer.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.ExecContext(ctx, "PRAGMA busy_timeout = 100"); err != nil {
		return err
	}
	var busy, log, done int
	err = conn.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &done)
	if err == nil && busy != 0 {
		err = errors.New("a reader holds the write-ahead log; it is emptied later")
	}
	_, back := conn.ExecContext(context.WithoutCancel(ctx), "PRAGMA busy_timeout = 5000") // as openHandle has it
	return errors.Join(err, back)
}

// Sizes are the bytes of the database's file, and how many of them are free for new rows. PostgreSQL knows the first alone: free is 0.
func (d *DB) Sizes(ctx context.Context) (bytes, free int64, err error) {
	if d.url != "" {
		err = d.QueryRow(ctx, "SELECT pg_database_size(current_database())").Scan(&bytes)
		return bytes, 0, explain(d.path, err)
	}
	err = d.Read(ctx, func(tx *sql.Tx) error {
		return tx.QueryRow(`SELECT p.page_count * s.page_size, f.freelist_count * s.page_size
			FROM pragma_page_count p, pragma_page_size s, pragma_freelist_count f`).Scan(&bytes, &free)
	})
	return bytes, free, err
}
