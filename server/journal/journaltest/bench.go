package journaltest

import (
	"bytes"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"wardlink/server/journal"
)

// BenchmarkSubmit is what ingest does: 50 sessions with 16 publishes of 1 KB in flight each. It reports entries a second, and microseconds of
// this process's processor for each.
func BenchmarkSubmit(b *testing.B, j journal.Store) {
	head, blob := bytes.Repeat([]byte("h"), 200), bytes.Repeat([]byte("b"), 1024)
	b.SetBytes(int64(len(head) + len(blob)))
	b.ReportAllocs()
	b.ResetTimer()
	began := Processor()
	var left atomic.Int64
	left.Store(int64(b.N))
	var sessions sync.WaitGroup
	for range 50 {
		sessions.Go(func() {
			window := make(chan struct{}, 16)
			for left.Add(-1) >= 0 {
				window <- struct{}{}
				err := j.Submit(journal.Entry{ID: j.NextID(), Kind: journal.KindPublish, Head: head, Blob: blob}, func(_ uint64, err error) {
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
	b.ReportMetric(float64(Processor()-began)/float64(b.N), "us-own/entry")
}

// Processor is the processor time that this process used, in microseconds.
func Processor() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return (u.Utime.Nano() + u.Stime.Nano()) / 1000
}
