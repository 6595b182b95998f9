package api

import (
	"net/url"
	"testing"

	"wardlink/telemetry"
)

// FuzzParseQuery: what passes names a gateway and a lane, and says the same when it is asked again in its own words.
func FuzzParseQuery(f *testing.F) {
	f.Add("gateway=icu-7&lane=vitals&number=0")
	f.Add("gateway=icu-7&lane=alarm&number=18446744073709551615&epoch=00112233445566778899aabbccddeeff")
	f.Add("gateway=icu-7&lane=vitals&number=-1")
	f.Add("gateway=&lane=self&number=3")
	f.Add("gateway=a&gateway=b&lane=waveform&number=0x10")
	f.Add("gateway=a&lane=vitals&number=1&epoch=zz")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		q, err := parseQuery(v)
		if err != nil {
			return
		}
		if q.Gateway == "" {
			t.Error("a query without a gateway")
		}
		if _, err := telemetry.ParseLane(telemetry.Lane(q.Lane).String()); err != nil {
			t.Errorf("lane %d: %v", q.Lane, err)
		}
		if (q.Epoch != nil) != (v.Get("epoch") != "") {
			t.Errorf("epoch %q is read as %v", v.Get("epoch"), q.Epoch)
		}
	})
}
