package journal

import (
	"bytes"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkSubmit is what ingest does: 50 sessions with 16 publishes of 1 KB in flight each.
func BenchmarkSubmit(b *testing.B) {
	c := Config{Dir: filepath.Join(b.TempDir(), "journal"), Consumers: []string{"log"}}
	if err := Create(c); err != nil {
		b.Fatal(err)
	}
	j := mustOpen(b, c)
	head, blob := bytes.Repeat([]byte("h"), 200), bytes.Repeat([]byte("b"), 1024)
	b.SetBytes(int64(len(head) + len(blob)))
	b.ReportAllocs()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var sessions sync.WaitGroup
	for range 50 {
		sessions.Go(func() {
			window := make(chan struct{}, 16)
			for left.Add(-1) >= 0 {
				window <- struct{}{}
				err := j.Submit(Entry{ID: j.NextID(), Kind: KindPublish, Head: head, Blob: blob}, func(_ uint64, err error) {
					if err != nil {
						b.Error(err)
					}
					<-window
				})
				if err != nil {
					b.Error(err)
				}
			}
			for range cap(window) {
				window <- struct{}{}
			}
		})
	}
	sessions.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
