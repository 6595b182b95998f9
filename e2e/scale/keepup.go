package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"wardlink/server/records"
)

// sealed is a batch on its way to the journal.
type sealed struct {
	gateway string
	frame   []byte
}

// prepare seals what the gateways are going to send, so that sealing, which is the gateways' work, takes nothing from the server's processor.
func (s *stage) prepare(batches int, begin time.Time, spacing time.Duration) ([]sealed, error) {
	progress("%d batches are sealed", batches)
	out := make([]sealed, 0, batches)
	for i := range batches {
		m := s.ward[i%len(s.ward)]
		frame, err := m.batch(begin.Add(time.Duration(i/len(s.ward)*s.messages)*spacing), s.messages, spacing)
		if err != nil {
			return nil, err
		}
		out = append(out, sealed{m.gateway, frame})
	}
	return out, nil
}

// keepup journals batches at a rate while records settle them; or, at rate 0, all at once before records begin.
func keepup(ctx context.Context, p plan) (err error) {
	s, err := open(p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.enrol(ctx); err != nil {
		return err
	}
	batches := p.gateways * int(p.length/time.Second)
	if p.rate > 0 {
		batches = p.rate * int(p.length/time.Second)
	}
	todo, err := s.prepare(batches, time.Now(), time.Second)
	if err != nil {
		return err
	}
	bytes := 0
	for _, t := range todo {
		bytes += len(t.frame)
	}
	before, _, _, err := s.databaseSizes(ctx)
	if err != nil {
		return err
	}
	if p.rate == 0 {
		if err := s.journalAll(ctx, todo, 0); err != nil {
			return err
		}
	}
	begin, used := time.Now(), cpu()
	r, stop, err := s.consume(ctx, nil)
	if err != nil {
		return err
	}
	watched, lags := make(chan struct{}), &lagWatch{}
	go func() { defer close(watched); lags.watch(ctx, s, r, int64(batches)) }()
	var journaled time.Duration
	if p.rate > 0 {
		if err := s.journalAll(ctx, todo, p.rate); err != nil {
			return errors.Join(err, stop())
		}
		journaled = time.Since(begin)
	}
	<-watched
	took, used := time.Since(begin), cpu()-used
	st, err := r.Stats(ctx)
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	if st.Batches != int64(batches) || st.Dead+st.Pending > 0 {
		return fmt.Errorf("%d batches journaled, but %d stored, %d dead, %d pending", batches, st.Batches, st.Dead, st.Pending)
	}
	after, _, _, err := s.databaseSizes(ctx)
	if err != nil {
		return err
	}
	if err := addRun(p.json, measuredRun{Batches: batches, Observations: st.Observations, Gateways: p.gateways, Rate: float64(p.rate),
		Seconds: took.Seconds(), Lag: quantile(lags.seen, 1).Seconds()}); err != nil {
		return err
	}
	row(fmt.Sprintf("batches of %d gateways, %d messages each; bytes of a frame", p.gateways, p.messages), fmt.Sprintf("%d; %d", batches, bytes/batches), "")
	if p.rate > 0 {
		row("batches/s journaled", fmt.Sprintf("%.0f", float64(batches)/journaled.Seconds()), fmt.Sprintf("asked for %d", p.rate))
		row("  lag of records: median, p99, longest", fmt.Sprintf("%.1f %.1f %.1f s", quantile(lags.seen, 0.5).Seconds(), quantile(lags.seen, 0.99).Seconds(), quantile(lags.seen, 1).Seconds()), "flat")
		row("  mean of its first and of its last quarter", fmt.Sprintf("%.1f %.1f s", lags.mean(0).Seconds(), lags.mean(3).Seconds()), "flat")
		row("  from the last journaled to all visible", fmt.Sprintf("%.2f s", (took-journaled).Seconds()), "")
	}
	row("batches/s opened, stored and visible", fmt.Sprintf("%.0f", float64(batches)/took.Seconds()), "")
	row("observations/s", fmt.Sprintf("%.0f", float64(st.Observations)/took.Seconds()), "")
	row("CPU us a batch: records, log's writer, and journal unless all was journaled before", fmt.Sprintf("%.1f", float64(used.Microseconds())/float64(batches)), "")
	row("database bytes/observation", fmt.Sprintf("%.1f", float64(after-before)/float64(st.Observations)), "")
	row("write-ahead log, largest", fmt.Sprintf("%.1f MB", float64(lags.wal)/1e6), "bounded")
	row("journal bytes/batch", fmt.Sprintf("%.0f", float64(sizeOf(s.journalDir(), func(string) bool { return true }))/float64(batches)), "")
	row("log bytes/batch", fmt.Sprintf("%.0f", float64(sizeOf(s.logDir(), func(string) bool { return true }))/float64(batches)), "")
	return nil
}

// measuredRun is a run as simulate reads it.
type measuredRun struct {
	Batches      int     `json:"batches"`
	Observations int64   `json:"observations"`
	Gateways     int     `json:"gateways"`
	Rate         float64 `json:"rate"`    // batches journaled a second; 0: all before records began
	Seconds      float64 `json:"seconds"` // from the beginning to all visible
	Lag          float64 `json:"lag"`     // longest of records, seconds
}

// addRun adds a run to those of a file; "" is none.
func addRun(path string, run measuredRun) error {
	if path == "" {
		return nil
	}
	var runs []measuredRun
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &runs)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if data, err = json.Marshal(append(runs, run)); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// journalAll journals batches at a rate, evenly over each tenth of a second; 0 is as fast as the journal takes them. It returns when all are durable.
func (s *stage) journalAll(ctx context.Context, todo []sealed, rate int) error {
	progress("%d batches are journaled", len(todo))
	var flying sync.WaitGroup
	errs := make(chan error, 1)
	begin := time.Now()
	for i, t := range todo {
		if rate > 0 && i%max(rate/10, 1) == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(rate)))):
			}
		}
		if err := s.submit(t.gateway, t.frame, &flying, errs); err != nil {
			return err
		}
	}
	flying.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return ctx.Err()
	}
}

// lagWatch looks at records twice a second.
type lagWatch struct {
	seen []time.Duration
	wal  int64
}

// watch returns once that many batches are stored.
func (l *lagWatch) watch(ctx context.Context, s *stage, r *records.Records, batches int64) {
	told := time.Now()
	for ctx.Err() == nil {
		st, err := r.Stats(ctx)
		if err != nil || st.Batches+st.Dead >= batches {
			return
		}
		l.seen = append(l.seen, st.Lag)
		if _, _, wal, err := s.databaseSizes(ctx); err == nil {
			l.wal = max(l.wal, wal)
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			progress("%d of %d batches stored, lag %.1f s", st.Batches, batches, st.Lag.Seconds())
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// mean lag of one quarter of the run.
func (l *lagWatch) mean(quarter int) (sum time.Duration) {
	part := l.seen[len(l.seen)*quarter/4 : len(l.seen)*(quarter+1)/4]
	if len(part) == 0 {
		return 0
	}
	for _, v := range part {
		sum += v
	}
	return sum / time.Duration(len(part))
}
