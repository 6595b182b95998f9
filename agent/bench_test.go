package agent

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/agent/source"
	"wardlink/enroll/enrolltest"
	"wardlink/telemetry/hl7"
	"wardlink/telemetry/seal"
)

// BenchmarkMLLP measures a whole agent on the disk of the temporary directory: from a message's first byte to its acknowledgement, which
// comes after seal and fsync. One connection that waits for each acknowledgement has a goal of 100 messages/s, and 40 ms for 99 of 100;
// 200 connections are what a source takes at once, and must keep up with a message a second each.
func BenchmarkMLLP(b *testing.B) {
	for _, conns := range []int{1, 200} {
		b.Run(fmt.Sprint(conns), func(b *testing.B) { benchmarkMLLP(b, conns) })
	}
}

func benchmarkMLLP(b *testing.B, conns int) {
	private, err := seal.GenerateKey()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	path := filepath.Join(dir, "kit.json")
	if err := os.WriteFile(path, enrolltest.Kit(b, "ward.example", "127.0.0.1:1", private.Public()), 0o600); err != nil {
		b.Fatal(err)
	}
	a, err := New(Config{
		Kit: path, State: filepath.Join(dir, "state"), TPM: "swtpm:/nowhere", Buffer: BufferConfig{Cap: "1GB"}, Log: "text",
		Sources: []SourceConfig{{ID: "bed-1", MLLP: "127.0.0.1:0", Limits: LimitsConfig{Connections: 256, PerAddress: 256}}},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}()

	before := heap()
	var open []net.Conn
	for range conns {
		c, err := net.Dial("tcp", a.feeds.all()[0].Source.(*source.MLLP).Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	var sent atomic.Int64
	exchange := func(c net.Conn, r *bufio.Reader, n int64) time.Duration {
		begun := time.Now()
		if err := hl7.WriteFrame(c, message(fmt.Sprintf("%d-%d", begun.UnixNano(), n), 100)); err != nil {
			b.Error(err)
			return 0
		}
		_ = c.SetReadDeadline(begun.Add(time.Minute))
		if _, err := r.ReadString(0x1c); err != nil {
			b.Error(err)
		}
		return time.Since(begun)
	}
	readers := make([]*bufio.Reader, conns)
	for i, c := range open { // what each connection needs is there before it is measured
		readers[i] = bufio.NewReader(c)
		exchange(c, readers[i], 0)
	}
	each := float64(heap()-before) / float64(conns) / 1024

	var mu sync.Mutex
	var took []time.Duration
	b.ResetTimer()
	begun := time.Now()
	var all sync.WaitGroup
	for i, c := range open {
		all.Go(func() {
			var mine []time.Duration
			for n := sent.Add(1); n <= int64(b.N) && !b.Failed(); n = sent.Add(1) {
				mine = append(mine, exchange(c, readers[i], n))
			}
			mu.Lock()
			took = append(took, mine...)
			mu.Unlock()
		})
	}
	all.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/time.Since(begun).Seconds(), "messages/s")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(each, "KB/connection")
}

// heap is the bytes that are in use, by this process and so by both ends of each connection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
