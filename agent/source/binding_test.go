package source

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// dialFrom connects from an address of loopback, all of which is this machine's.
func dialFrom(t *testing.T, s *MLLP, from string) device {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}).Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return device{t, c, hl7.NewReader(c, telemetry.MaxMessage)}
}

// sent is a message of a sending application with one reading of each device.
func sent(application string, devices ...string) []byte {
	text := "MSH|^~\\&|" + application + "|W|||20260102030405+0000||ORU^R01^ORU_R01|1|P|2.6\r"
	for range devices {
		text += "OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC||80|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R|||||||@\r"
		text = strings.Replace(text, "@", devices[0], 1)
		devices = devices[1:]
	}
	return []byte(text)
}

func TestBindings(t *testing.T) {
	got := make(chan Delivery, 1)
	acked := make(chan string, 1)
	s, _ := start(t, Config{
		ID: "port", Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Bindings: []Binding{
			{Address: netip.MustParseAddr("127.0.0.2"), Bed: "ICU-2", ID: "icu-2"},
			{Address: netip.MustParseAddr("127.0.0.3"), Bed: "ICU-3"},
			{MSH3: "CMS-4", Bed: "ICU-4", ID: "icu-4"},
			{MSH3: "CMS-2", Bed: "ICU-2"},
			{Device: "EUI5", Bed: "ICU-5"},
			{Device: "EUI3", Bed: "ICU-3"},
		},
		Accept:       func(_ context.Context, d Delivery) error { got <- d; return nil },
		Acknowledged: func(source string, _ [32]byte) { acked <- source },
	})
	for name, c := range map[string]struct {
		from, application string
		devices           []string
		id, bed           string
		beds              string // of the readings
		conflict          string // where
	}{
		"nothing is bound":               {"127.0.0.1", "MON", []string{"EUI1"}, "port", "", "", ""},
		"by address":                     {"127.0.0.2", "MON", []string{"EUI1"}, "icu-2", "ICU-2", "", ""},
		"by address, without an id":      {"127.0.0.3", "MON", []string{"EUI1"}, "port", "ICU-3", "", ""},
		"by application":                 {"127.0.0.1", "CMS-4^1.2^ISO", []string{"EUI1"}, "icu-4", "ICU-4", "", ""},
		"by device":                      {"127.0.0.1", "MON", []string{"EUI1", "EUI5^^0001^EUI-64"}, "port", "", ",ICU-5", ""},
		"device beside application":      {"127.0.0.1", "CMS-4", []string{"EUI5", "EUI1"}, "icu-4", "ICU-4", "ICU-5,", ""},
		"application of the same bed":    {"127.0.0.2", "CMS-2", []string{"EUI1"}, "icu-2", "ICU-2", "", ""},
		"application of another bed":     {"127.0.0.2", "CMS-4", []string{"EUI1"}, "icu-2", "ICU-2", "", "MSH-3"},
		"device of another bed":          {"127.0.0.3", "MON", []string{"EUI5"}, "port", "ICU-3", "", "OBX-18"},
		"device of the same bed":         {"127.0.0.3", "MON", []string{"EUI3"}, "port", "ICU-3", "", ""},
		"no application":                 {"127.0.0.1", "", nil, "port", "", "", ""},
		"an application that bed has no": {"127.0.0.3", "CMS-9", []string{""}, "port", "ICU-3", "", ""},
	} {
		before := s.Stats().BedConflicts
		d := dialFrom(t, s, c.from)
		d.send(frame(sent(c.application, c.devices...)))
		m := <-got
		if a := d.answer(); a != "MSA|AA|1" {
			t.Errorf("%s: %q; nothing is refused for its content", name, a)
		}
		if id := <-acked; id != c.id || m.Source != c.id || m.Message.Source != c.id {
			t.Errorf("%s: source %q, %q, acknowledged %q; want %q", name, m.Source, m.Message.Source, id, c.id)
		}
		var beds []string
		for _, o := range m.Message.Observations {
			beds = append(beds, o.Bed)
		}
		if m.Message.Bed != c.bed || strings.Trim(strings.Join(beds, ","), ",") != strings.Trim(c.beds, ",") || strings.HasPrefix(c.beds, ",") && beds[0] != "" {
			t.Errorf("%s: bed %q, of the readings %q", name, m.Message.Bed, beds)
		}
		told := ""
		for _, p := range m.Message.Problems {
			if p.Reason == BedConflict {
				told = p.Where
			}
		}
		if told != c.conflict || s.Stats().BedConflicts-before != uint64(len(c.conflict)+5)/6 {
			t.Errorf("%s: conflict at %q, counted %d", name, told, s.Stats().BedConflicts-before)
		}
	}
	st := s.Stats()
	if st.Received != 7 || len(st.Bound) != 2 || st.Bound[0].ID != "icu-2" || st.Bound[0].Received != 3 || st.Bound[0].Bed != "ICU-2" ||
		st.Bound[0].Port != "port" || !st.Bound[0].Listening || st.Bound[1].Received != 2 || st.NotUnderstood != 1 { // a message without readings, and none for its bed
		t.Errorf("%+v", st)
	}
	for i, want := range []uint64{3, 4, 2, 0, 2, 1} {
		if b := st.Beds[i]; b.Received != want || b.LastReceived.IsZero() != (want == 0) {
			t.Errorf("%s: %+v, want %d messages", b.By, b, want)
		}
	}
	if !strings.Contains(st.BedConflict, "is of another bed") || time.Since(st.LastBedConflict) > time.Hour {
		t.Errorf("the conflict reads %q", st.BedConflict)
	}
}

func TestCheckBindings(t *testing.T) {
	a := netip.MustParseAddr
	allow := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	good := []Binding{{Address: a("10.1.2.3"), Bed: "ICU-7", ID: "x"}, {Device: "E", Bed: "ICU-7"}, {MSH3: "M", Bed: "ICU 8"}, {Certificate: "m.example", Bed: "ICU-9"}}
	if err := CheckBindings(good, allow, true); err != nil {
		t.Error(err)
	}
	for want, bs := range map[string][]Binding{
		"exactly one of":                 {{Bed: "ICU-7"}},
		"there are 2":                    {{Bed: "ICU-7", MSH3: "M", Device: "E"}},
		"bindings[0]: bed: expected":     {{MSH3: "M"}},
		"printable":                      {{MSH3: "M", Bed: "ICU\n7"}},
		"spaces":                         {{MSH3: "M", Bed: " ICU"}},
		"1 to 64":                        {{MSH3: "M", Bed: strings.Repeat("x", 65)}},
		"first component":                {{MSH3: "M^1.2.3^ISO", Bed: "ICU-7"}},
		"device: expected the field":     {{Device: "E^^X", Bed: "ICU-7"}},
		"not with device":                {{Device: "E", Bed: "ICU-7", ID: "x"}},
		"bound by bindings[0] already":   {{Address: a("10.1.2.3"), Bed: "ICU-7"}, {Address: a("10.1.2.3"), Bed: "ICU-8"}},
		"bindings[1]: msh3 M is bound":   {{MSH3: "M", Bed: "ICU-7"}, {MSH3: "M", Bed: "ICU-7"}},
		"bindings[1].id: \"x\"":          {{MSH3: "M", Bed: "ICU-7", ID: "x"}, {MSH3: "N", Bed: "ICU-7", ID: "x"}},
		"10.2.2.3 may not connect":       {{Address: a("10.2.2.3"), Bed: "ICU-7"}},
		"no device is asked for one":     {{Certificate: "m", Bed: "ICU-7"}},
		"bindings[1]: msh3: expected 1 ": {{MSH3: "M", Bed: "ICU-7"}, {MSH3: " M ", Bed: "ICU-7"}},
	} {
		if err := CheckBindings(bs, allow, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v; want %q in it", bs, err, want)
		}
	}
}
