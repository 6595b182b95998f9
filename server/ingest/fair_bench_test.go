package ingest

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"wardlink/server/journal"
	"wardlink/telemetry"
)

// BenchmarkFlood is what a gateway that sends ten times as much as the others, and one that sends all it can, do to the others: the 99th
// percentile of the time from publish to PUBACK of twenty gateways with fifty publishes of 1 KB a second each, over mTLS and the journal on
// this disk. The three are measured in turns and the medians given; the goal is that no ratio is above 2. Clients share the processors.
func BenchmarkFlood(b *testing.B) {
	c := journal.Config{Dir: filepath.Join(b.TempDir(), "journal"), Consumers: []string{"log"}}
	must(0, journal.Create(c))(b)
	j := must(journal.Open(c))(b)
	defer j.Close()
	const gateways = 21 // the last one floods
	k := &bench{t: b, ca: newAuthority(b), reg: newRegistry()}
	job := loadJob{Calm: 20 * time.Millisecond, Window: 64, Rounds: max(1, b.N), Phase: 4 * time.Second}
	for i := range gateways {
		name := fmt.Sprintf("gw-%d", i)
		k.reg.lanes[name] = 0x0f
		job.Certs = append(job.Certs, pemOf(b, k.ca.gateway(name)))
	}
	p := newPeriod(b)
	job.Record = p.signed
	job.Frame = p.frame(telemetry.LaneVitals, 0, 1024-len(p.frame(telemetry.LaneVitals, 0, 0)))
	k.srv = New(Config{Journal: j, Registry: k.reg, TrustDomain: domain, Roots: k.ca.pool()})
	stop := k.serve(k.srv)
	defer stop()
	job.Addr = k.addr
	process := startLoad(b, job)
	process.expect("ready")
	b.ResetTimer()
	process.begin()
	var p99 [3]time.Duration
	if _, err := fmt.Fscan(process.out, &p99[0], &p99[1], &p99[2]); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	process.end()
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(p99[0]), "quiet-p99-ms")
	b.ReportMetric(ms(p99[1]), "tenfold-p99-ms")
	b.ReportMetric(ms(p99[2]), "flood-p99-ms")
	b.ReportMetric(ms(p99[1])/ms(p99[0]), "tenfold/quiet")
	b.ReportMetric(ms(p99[2])/ms(p99[0]), "flood/quiet")
}

// calm publishes one packet each time that every passes, waits for its PUBACK, and adds the times to out until the end.
func calm(conn *tls.Conn, packet []byte, idAt int, every time.Duration, end time.Time) (took []time.Duration, err error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var answer [4]byte
	for id := uint16(1); time.Now().Before(end); id = id%0xffff + 1 {
		<-tick.C
		binary.BigEndian.PutUint16(packet[idAt:], id)
		at := time.Now()
		if _, err := conn.Write(packet); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(conn, answer[:]); err != nil {
			return nil, err
		}
		took = append(took, time.Since(at))
	}
	return took, nil
}

// fairness is the load of BenchmarkFlood: phases without a flood, with one of ten times the rate, and with one without bound, in turns.
func fairness(job loadJob, conns []*tls.Conn, packets [][]byte, idAt []int) ([3]time.Duration, error) {
	var medians [3]time.Duration
	rounds := make([][]time.Duration, 3)
	last := len(conns) - 1
	for range job.Rounds {
		for kind := range rounds {
			end := time.Now().Add(job.Phase)
			var mu sync.Mutex
			var all []time.Duration
			var failed error
			var group sync.WaitGroup
			note := func(took []time.Duration, err error) {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, took...)
				if err != nil {
					failed = err
				}
			}
			for i := range last {
				group.Go(func() { note(calm(conns[i], packets[i], idAt[i], job.Calm, end)) })
			}
			switch kind {
			case 1:
				group.Go(func() {
					_, err := calm(conns[last], packets[last], idAt[last], job.Calm/10, end)
					note(nil, err)
				})
			case 2:
				group.Go(func() {
					note(nil, flood(conns[last], packets[last], idAt[last], job.Window, func() bool { return time.Now().Before(end) }))
				})
			}
			group.Wait()
			if failed != nil {
				return medians, failed
			}
			slices.Sort(all)
			rounds[kind] = append(rounds[kind], all[len(all)*99/100])
		}
	}
	for kind := range rounds {
		slices.Sort(rounds[kind])
		medians[kind] = rounds[kind][len(rounds[kind])/2]
	}
	return medians, nil
}
