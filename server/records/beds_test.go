package records_test

import (
	"testing"

	"wardlink/server/records"
	"wardlink/telemetry"
)

// A reading's bed is its device's, or where that is bound to none, its message's; and a message without patient is not anonymous where the bed of
// all that it holds is known.
func TestBeds(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	none, whole, part, other := message("", 1, "1"), message("", 2, "2", "3"), message("", 3, "4", "5"), message("", 4, "6")
	whole.Bed, whole.Observations[1].Bed = "ICU-7", "ICU-8"
	part.Observations[0].Bed = "ICU-8"
	other.Observations[0].Bed = "ICU-7"
	other.Waveforms = []telemetry.Waveform{{Index: 9, Time: "t", Period: "2", Bed: "ICU-9", Samples: []int32{1}}}
	named := message("p1", 5, "7")
	named.Bed = "ICU-7"
	g.publish("gw-1", g.sealBatch(none, whole, part, other, named))
	f.until("stored", stored(1))

	page, err := f.store().Search(f.ctx, records.Query{NoPatient: true, Limit: 20})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, o := range page.Observations {
		got[o.Value] = o.Bed
	}
	for value, bed := range map[string]string{"1": "", "2": "ICU-7", "3": "ICU-8", "4": "ICU-8", "5": "", "6": "ICU-7", "": "ICU-9"} {
		if b, found := got[value]; b != bed || !found {
			t.Errorf("reading %q is of bed %q; want %q", value, b, bed)
		}
	}
	a, err := f.store().Account(f.ctx, "gw-1")
	if err != nil || len(a.Sources) != 1 {
		t.Fatal(a, err)
	}
	if c := a.Sources[0]; c.Identified != 1 || c.Bedded != 2 || c.Anonymous != 2 || c.BeddedAt.IsZero() {
		t.Errorf("%+v", c)
	}
}
