package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"wardlink/server/records"
)

// beside is what others see while something goes on: a hospital that asks for the first page of a day, and a writer of one small row, each one after
// the other for as long as it lasts.
type beside struct {
	searches, writes []time.Duration
}

func (s *stage) beside(ctx context.Context, h *hospital, fn func() error) (b beside, took time.Duration, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	var searchErr, writeErr error
	group.Go(func() {
		for ctx.Err() == nil {
			_, t, err := h.get(ctx, h.day(100))
			if err != nil {
				if ctx.Err() == nil {
					searchErr = err
				}
				return
			}
			b.searches = append(b.searches, t)
		}
	})
	group.Go(func() {
		for ctx.Err() == nil {
			begin := time.Now()
			if err := s.db.Write(ctx, func(tx *sql.Tx) error {
				_, err := tx.Exec("UPDATE waveforms_totals SET samples = $1", len(b.writes))
				return err
			}); err != nil {
				if ctx.Err() == nil {
					writeErr = err
				}
				return
			}
			b.writes = append(b.writes, time.Since(begin))
		}
	})
	begin := time.Now()
	err = fn()
	took = time.Since(begin)
	stop()
	group.Wait()
	return b, took, errors.Join(err, searchErr, writeErr)
}

func (b *beside) rows() {
	row("  searches meanwhile, 24 h of one vital, a page of 100", times(b.searches), "<= 50 ms")
	row("  writes of one row meanwhile", times(b.writes), "")
}

// dispose lets retention take the older half of a filled database away, for as long as --length, then takes it away without a rest, and gives the room
// back.
func dispose(ctx context.Context, p plan) (err error) {
	s, err := open(p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	h, err := s.serve(ctx)
	if err != nil {
		return err
	}
	var first, last, messages int64
	if err := s.db.QueryRow(ctx, "SELECT MIN(aged), MAX(aged), COUNT(*) FROM messages").Scan(&first, &last, &messages); err != nil {
		return err
	}
	count := func() (n int64, err error) {
		err = s.db.QueryRow(ctx, "SELECT COUNT(*) FROM messages").Scan(&n)
		return n, err
	}
	row(fmt.Sprintf("of %d messages, %d readings each", messages, len(numerics)), "median  p99", "goal, of p99")
	quiet, _, err := s.beside(ctx, h, func() error { return wait(ctx, 10*time.Second) })
	if err != nil {
		return err
	}
	row("nothing else goes on", "", "")
	quiet.rows()

	middle := time.UnixMilli((first + last) / 2)
	keep := &records.Retention{Batches: 7 * 24 * time.Hour, Waveforms: 72 * time.Hour, Vitals: time.Since(middle), Alarms: 365 * 24 * time.Hour, Dead: 365 * 24 * time.Hour}
	_, stop, err := s.consume(ctx, keep)
	if err != nil {
		return err
	}
	during, took, err := s.beside(ctx, h, func() error { return wait(ctx, p.length) })
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	left, err := count()
	if err != nil {
		return err
	}
	row("retention disposes, nothing new comes: rows/s", fmt.Sprintf("%.0f", float64(messages-left)*float64(len(numerics)+1)/took.Seconds()), "as many as come")
	during.rows()

	if err := s.deleteBefore(ctx, middle); err != nil {
		return err
	}
	before, free, _, err := s.databaseSizes(ctx)
	if err != nil {
		return err
	}
	reclaim, took, err := s.beside(ctx, h, func() error { return s.db.Reclaim(ctx) })
	if err != nil {
		return err
	}
	after, _, wal, err := s.databaseSizes(ctx)
	if err != nil {
		return err
	}
	row(fmt.Sprintf("room is given back: %.0f MB of %.0f, of which %.0f were free; took", float64(before-after)/1e6, float64(before)/1e6, float64(free)/1e6),
		fmt.Sprintf("%.1f s", took.Seconds()), "")
	reclaim.rows()
	row("  write-ahead log afterwards", fmt.Sprintf("%.1f MB", float64(wal)/1e6), "")
	return nil
}

// deleteBefore deletes what is older, without retention's rests.
func (s *stage) deleteBefore(ctx context.Context, before time.Time) error {
	progress("the rest of the older half is deleted")
	for n := int64(1); n > 0; {
		if err := s.db.Write(ctx, func(tx *sql.Tx) error {
			const over = "(SELECT id FROM messages WHERE lane = 1 AND aged < $1 ORDER BY id LIMIT 2000)"
			if _, err := tx.Exec("DELETE FROM readings WHERE EXISTS (SELECT 1 FROM (SELECT id AS message FROM messages WHERE lane = 1 AND aged < $1 ORDER BY id LIMIT 2000) m WHERE readings.id BETWEEN m.message * 1048576 AND m.message * 1048576 + 1048575)", before.UnixMilli()); err != nil {
				return err
			}
			res, err := tx.Exec("DELETE FROM messages WHERE id IN "+over, before.UnixMilli())
			if err != nil {
				return err
			}
			n, err = res.RowsAffected()
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// wait for a while.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
