package ingest

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"wardlink/telemetry"
)

// BenchmarkIdle is what a connection costs while its gateway is silent: resident memory of this process, which is the server's alone, for each of
// 2,000 mTLS sessions. warm: each has published a frame as large as two TLS records before it fell silent. The endpoint is alone
// here; the goal of 45 KB is the whole server's. One
// iteration is one measurement.
func BenchmarkIdle(b *testing.B) {
	for name, size := range map[string]int{"fresh": 0, "warm": 20 << 10} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				benchmarkIdle(b, 2000, size)
			}
		})
	}
}

func benchmarkIdle(b *testing.B, gateways, size int) {
	j := new(nullJournal)
	k := &bench{t: b, ca: newAuthority(b), reg: newRegistry()}
	job := loadJob{Window: 1}
	for i := range gateways {
		name := fmt.Sprintf("gw-%d", i)
		k.reg.lanes[name] = 0x0f
		job.Certs = append(job.Certs, pemOf(b, k.ca.gateway(name)))
	}
	p := newPeriod(b)
	job.Record, job.Frame = p.signed, p.frame(telemetry.LaneVitals, 0, 1)
	if size > 0 {
		job.Warm = p.frame(telemetry.LaneVitals, 0, size)
	}
	k.srv = New(Config{Journal: j, Registry: k.reg, TrustDomain: domain, Roots: k.ca.pool()})
	ctx, cancel := context.WithCancel(context.Background())
	running := make(chan error, 1)
	go func() { running <- k.srv.Run(ctx) }()
	stop := k.serve(k.srv)
	job.Addr = k.addr

	process := startLoad(b, job)
	job = loadJob{}
	debug.FreeOSMemory()
	before := residentKB(b)
	process.expect("ready")
	if n := len(k.srv.Sessions()); n != gateways {
		b.Fatalf("%d sessions", n)
	}
	time.Sleep(3 * idleAfter) // they fall asleep
	per := func(bytes uint64) float64 { return float64(bytes) / 1024 / float64(gateways) }
	b.ReportMetric(float64(residentKB(b)-before)/float64(gateways), "at-once-KB/conn")
	debug.FreeOSMemory() // as the collector and the scavenger do within minutes
	b.ReportMetric(float64(residentKB(b)-before)/float64(gateways), "rss-KB/conn")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(per(m.HeapAlloc), "heap-KB/conn")
	b.ReportMetric(per(m.StackInuse), "stack-KB/conn")
	if name := os.Getenv("WARDLINK_HEAP"); name != "" {
		writeHeap(b, name)
	}
	process.begin()
	process.end()
	stop()
	cancel()
	<-running
}

// residentKB is this process's resident memory.
func residentKB(b *testing.B) int {
	b.Helper()
	for line := range strings.Lines(string(must(os.ReadFile("/proc/self/status"))(b))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			return must(strconv.Atoi(f[1]))(b)
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
