package fhir_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"wardlink/server/registry"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// history is the registry's side: the wards of the one gateway.
type history struct {
	wards registry.Wards
	err   error
}

func (h *history) Wards(_ context.Context, gateway string) (registry.Wards, error) {
	if gateway != "gw-1" {
		return nil, fmt.Errorf("asked about %q", gateway)
	}
	return h.wards, h.err
}

// TestWardOfAReading: the ward is that of the moment at which the gateway had the reading, whatever the device's clock says; and no
// answer rather than one without its ward.
func TestWardOfAReading(t *testing.T) {
	var messages []telemetry.Message
	for i, received := range []int64{0, 100} { // the second's device clock is a day behind
		raw := fmt.Sprintf("MSH|^~\\&|M|I|W|W|2026052%d202640+0000||ORU^R01^ORU_R01|%d|P|2.6\rPID|||p1^^^H&2.25.77&ISO\r", 8-i, i) +
			"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1|80|bpm|||||R\r"
		m, err := hl7.Understand([]byte(raw), hl7.Options{Source: "bed-1"})
		if err != nil {
			t.Fatal(err)
		}
		m.Received.Wall = start + received
		messages = append(messages, m)
	}
	f := setup(t, messages...)
	h := &history{wards: registry.Wards{{Name: "ICU 2"}, {Name: "ICU 4", Since: time.UnixMilli(start + 100)}}}
	f.cfg.Wards = h
	f.restart()
	ward := func(o any) string {
		for i := range 4 {
			if strings.HasSuffix(text(o, "extension", i, "url"), "/event-location") {
				if text(o, "extension", i, "valueReference", "identifier", "system") != "urn:wardlink:ward" {
					t.Error("the ward has no system")
				}
				return text(o, "extension", i, "valueReference", "identifier", "value")
			}
		}
		return ""
	}
	b := f.get(search("p1", ""))
	newest, oldest := at(b, "entry", 0, "resource"), at(b, "entry", 1, "resource")
	if ward(newest) != "ICU 2" || ward(oldest) != "ICU 4" {
		t.Errorf("%q and %q; expected the moments of arrival to count", ward(newest), ward(oldest))
	}
	if one := f.get(base + "/Observation/" + text(oldest, "id")); ward(one) != "ICU 4" {
		t.Errorf("read alone: %q", ward(one))
	}
	h.wards = h.wards[:1]
	if b := f.get(search("p1", "")); ward(at(b, "entry", 0, "resource")) != "ICU 2" || ward(at(b, "entry", 1, "resource")) != "ICU 2" {
		t.Error("a gateway that never moved")
	}
	h.err = errors.New("disk")
	if got := f.do("GET", search("p1", ""), f.cert); got.Code < 500 {
		t.Errorf("answered %d without knowing the ward", got.Code)
	}
}

// TestBedOfAReading: a reading that names no patient is found, and says of which bed it is.
func TestBedOfAReading(t *testing.T) {
	raw := "MSH|^~\\&|M|I|W|W|20260528202640+0000||ORU^R01^ORU_R01|1|P|2.6\rOBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1|80|bpm|||||R\r"
	m, err := hl7.Understand([]byte(raw), hl7.Options{Source: "bed-1"})
	if err != nil {
		t.Fatal(err)
	}
	m.Bed = "ICU-7"
	f := setup(t, m)
	o := at(f.get(base+"/Observation?patient:missing=true"), "entry", 0, "resource")
	if text(o, "extension", 1, "url") != "urn:wardlink:bed" || text(o, "extension", 1, "valueReference", "identifier", "value") != "ICU-7" ||
		text(o, "extension", 1, "valueReference", "identifier", "system") != "urn:wardlink:bed" {
		t.Errorf("%v", o)
	}
}
