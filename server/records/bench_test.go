package records_test

import (
	"fmt"
	"testing"
	"time"

	"wardlink/server/records"
	"wardlink/telemetry"
)

// BenchmarkStore is the whole way from journaled frames to committed observations: batches of 100 messages with 10 readings each,
// 100 patients.
func BenchmarkStore(b *testing.B) {
	f := setup(b)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	const perMessage, perBatch = 10, 100
	values := make([]string, perMessage)
	total := 0
	for n := 0; total < b.N; {
		var ms []telemetry.Message
		for range perBatch {
			for i := range values {
				values[i] = fmt.Sprint(60 + (n+i)%40)
			}
			ms = append(ms, message(fmt.Sprintf("p%d", n%100), n/100, values...))
			n++
			total += perMessage
		}
		g.publish("gw-1", g.sealBatch(ms...))
	}
	b.ResetTimer()
	begin := time.Now()
	f.until("stored", func(s records.Stats) bool { return s.Observations >= int64(total) })
	b.StopTimer()
	b.ReportMetric(float64(total)/time.Since(begin).Seconds(), "observations/s")
}
