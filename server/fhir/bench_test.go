package fhir_test

import (
	"fmt"
	"net/url"
	"testing"

	"wardlink/server/records"
	"wardlink/telemetry"
)

// BenchmarkSearch is a page of 1000 readings of one code of one patient among 400,000 of 40 patients, as JSON and journaled.
func BenchmarkSearch(b *testing.B) {
	const patients, seconds, perMessage = 40, 1000, 10
	var ms []telemetry.Message
	for n := range seconds {
		for p := range patients {
			m := reading(fmt.Sprintf("p%d", p), n, fmt.Sprint(60+n%40))
			for i := 1; i < perMessage; i++ {
				o := m.Observations[0]
				o.Index, o.Code.MDC, o.Code.ID = uint32(i), 150000+uint32(i), fmt.Sprint(150000+i)
				m.Observations = append(m.Observations, o)
			}
			ms = append(ms, m)
		}
	}
	f := setup(b, ms...)
	disk, _, err := f.db.Sizes(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	target := "/fhir/Observation?" + url.Values{
		"patient": {records.PatientID(pseudonym, system, "p7")}, "code": {"8867-4"}, "_count": {"1000"}, "date": {"ge2026-05-28"},
	}.Encode()
	b.ResetTimer()
	for b.Loop() {
		f.get(target)
	}
	b.ReportMetric(float64(disk)/(patients*seconds*perMessage), "bytes/observation")
}
