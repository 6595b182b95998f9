package translog

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkRows measures the log's writer alone: publishes read from a journal in memory, hashed into windows, made durable, integrated,
// marked. The figure to compare is rows/s; ingest's goal is 34,700 publishes/s.
func BenchmarkRows(b *testing.B) {
	dir, j := filepath.Join(b.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(b, dir, j)
	if err := Create(cfg); err != nil {
		b.Fatal(err)
	}
	for seq := uint64(1); len(j.entries) < b.N; seq++ {
		e := makeEntry(b, seq)
		if isEvent(seq) {
			continue
		}
		e.Seq = uint64(len(j.entries)) + 1
		j.entries = append(j.entries, e)
	}
	l := open(b, cfg)
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	b.ResetTimer()
	for l.at.Seq < uint64(b.N) {
		if _, err := l.turn(ctx); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
