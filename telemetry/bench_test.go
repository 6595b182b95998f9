package telemetry

import (
	"fmt"
	"testing"
)

// The shapes: what one message a second makes (its acknowledgement closes the batch), a backlog's batch, and a busy ward's.
var shapes = []struct{ messages, readings int }{{1, 20}, {60, 20}, {200, 40}, {1000, 1}}

func BenchmarkEncode(b *testing.B) {
	for _, s := range shapes {
		b.Run(fmt.Sprintf("%dx%d", s.messages, s.readings), func(b *testing.B) {
			batch := vitals(s.messages, s.readings)
			size := len(mustEncode(b, batch))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Encode(batch); err != nil {
					b.Fatal(err)
				}
			}
			rate(b, s.messages*s.readings, size)
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, s := range shapes {
		b.Run(fmt.Sprintf("%dx%d", s.messages, s.readings), func(b *testing.B) {
			data := mustEncode(b, vitals(s.messages, s.readings))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Decode(data); err != nil {
					b.Fatal(err)
				}
			}
			rate(b, s.messages*s.readings, len(data))
		})
	}
}

func rate(b *testing.B, observations, size int) {
	b.ReportMetric(float64(observations)*float64(b.N)/b.Elapsed().Seconds(), "obs/s")
	b.ReportMetric(float64(size)/float64(observations), "bytes/obs")
}
