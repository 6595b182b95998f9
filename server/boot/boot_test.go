package boot

import (
	"crypto/sha256"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"wardlink/enroll/verify"
	"wardlink/enroll/verify/eventlog"
)

func digest(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// booted is what a machine quotes that measured these, as pcr:text, and its log.
func booted(t *testing.T, events ...string) (m verify.Measured, log []byte) {
	t.Helper()
	log = eventlog.Header()
	for _, e := range events {
		pcr, text, _ := strings.Cut(e, ":")
		log = eventlog.Append(log, int(pcr[0]-'0'), eventlog.IPL, digest(text), []byte(text))
	}
	l, err := eventlog.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	return verify.Measured{Selected: verify.QuotedPCRs, Values: l.Replay()}, log
}

func measured(t *testing.T, events ...string) Measurement {
	t.Helper()
	m, log := booted(t, events...)
	return Of(&m, log, "")
}

func TestMeasurement(t *testing.T) {
	m := measured(t, "0:firmware", "4:grub", "9:initrd")
	if len(m.PCRs) != 15 || len(m.Events) != 3 || m.Note != "" || m.Events[1].Index != 2 || m.Events[1].String() != `entry 2, EV_IPL "grub"` {
		t.Errorf("%+v", m)
	}
	quote, log := booted(t, "0:firmware", "4:grub", "9:initrd")
	quote.Values[4][0]++
	if m := Of(&quote, log, ""); m.Note != "the event log does not account for PCR 4" || len(m.Events) != 2 || len(m.of(4)) != 0 {
		t.Errorf("a log that lies about PCR 4 still tells of it: %+v", m)
	}
	for name, c := range map[string]struct {
		m       *verify.Measured
		log     []byte
		missing string
		note    string
	}{
		"no quote":  {nil, log, "bank off\x1b", "the gateway sent no quote: bank off?"},
		"no log":    {&quote, nil, "", "the gateway sent no event log"},
		"junk":      {&quote, []byte("junk"), "", eventlog.ErrShort.Error()},
		"SHA-1 log": {&quote, make([]byte, 32), "", "the event log has SHA-1 digests alone, and accounts for no PCR by SHA-256"},
	} {
		if m := Of(c.m, c.log, c.missing); m.Note != c.note || len(m.Events) != 0 || (len(m.PCRs) == 0) != (c.m == nil) {
			t.Errorf("%s: %+v", name, m)
		}
	}
	many := make([]string, 0, 600)
	for range 600 {
		many = append(many, "0:"+strings.Repeat("x", 300))
	}
	long := measured(t, many...)
	if len(long.Events) != maxEvents || long.Note != "only the first 512 events are kept" {
		t.Errorf("%d events, %q", len(long.Events), long.Note)
	}
	data, err := json.Marshal(long)
	if err != nil || len(data) > 128<<10 {
		t.Errorf("%d bytes are kept: %v", len(data), err)
	}
	again, err := Parse(data)
	if err != nil || !reflect.DeepEqual(again, long) {
		t.Errorf("read back: %v", err)
	}
	for name, text := range map[string]string{"nothing": `{}`, "no JSON": `x`, "PCR 24": `{"pcrs":{"24":"` + strings.Repeat("0", 64) + `"}}`,
		"a short value": `{"pcrs":{"0":"00"}}`, "no hex": `{"pcrs":{"0":"` + strings.Repeat("x", 64) + `"}}`, "much": strings.Repeat(" ", maxDocument+1)} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestJudge(t *testing.T) {
	p := Policy{Mode: Allow, PCRs: DefaultPCRs, After: 1}
	old := Known{"old", measured(t, "0:firmware", "4:shim", "4:grub", "7:keys")}
	fresh := Known{"new", measured(t, "0:firmware 2", "4:shim", "4:grub 2", "7:keys")}
	bare := Known{"", Measurement{PCRs: old.PCRs}}
	without := func(m Measurement, pcr int) Measurement {
		out := Measurement{PCRs: map[int]Digest{}, Events: m.Events}
		for k, v := range m.PCRs {
			if k != pcr {
				out.PCRs[k] = v
			}
		}
		return out
	}
	silent := old.Measurement
	silent.Events, silent.Note = nil, "the gateway sent no event log"
	silent.PCRs = measured(t, "0:firmware", "4:evil", "7:keys").PCRs
	for name, c := range map[string]struct {
		known   []Known
		m       Measurement
		matches string
		want    string
	}{
		"a match":             {[]Known{old, fresh}, measured(t, "0:firmware 2", "4:shim", "4:grub 2", "7:keys", "9:any initrd"), "new", ""},
		"another entry":       {[]Known{old, fresh}, measured(t, "0:firmware", "4:shim", "4:evil", "7:keys"), "", `PCR 4: entry 3, EV_IPL "evil" of the event log is another than the known entry 3, EV_IPL "grub"`},
		"the nearer is named": {[]Known{fresh, old}, measured(t, "0:firmware", "4:shim", "4:evil", "7:keys"), "", `PCR 4: entry 3, EV_IPL "evil" of the event log is another than the known entry 3, EV_IPL "grub"`},
		"an entry more":       {[]Known{old}, measured(t, "0:firmware", "4:shim", "4:grub", "7:keys", "4:evil"), "", `PCR 4: entry 5, EV_IPL "evil" of the event log is additional`},
		"an entry less":       {[]Known{old}, measured(t, "0:firmware", "4:shim", "7:keys"), "", `PCR 4: the known entry 3, EV_IPL "grub" is missing in the event log`},
		"two PCRs":            {[]Known{old}, measured(t, "0:evil", "4:shim", "4:grub", "7:other"), "", `PCR 0: entry 1, EV_IPL "evil" of the event log is another than the known entry 1, EV_IPL "firmware"; PCR 7 too`},
		"no log":              {[]Known{old}, silent, "", "PCR 4: no event log tells what made it differ: the gateway sent no event log"},
		"nothing to compare":  {[]Known{bare}, measured(t, "0:firmware", "4:evil", "7:keys"), "", "PCR 4: nothing tells what made it differ: the known values came without an event log"},
		"not quoted":          {[]Known{old}, without(old.Measurement, 7), "", "PCR 7: PCR 7 is not among those that the gateway quotes"},
		"not known":           {[]Known{{"short", without(old.Measurement, 7)}}, old.Measurement, "", "PCR 7: the known values have none for PCR 7"},
		"nothing is known":    {nil, old.Measurement, "", "PCR 0: no values are allowed yet; PCR 1, 2, 3, 4, 5, 6, 7 too"},
		"no quote":            {[]Known{old}, Measurement{Note: "the gateway sent no quote"}, "", "the gateway sent no quote"},
	} {
		got, mismatch := Judge(p, c.known, c.m)
		if (mismatch == nil) != (c.want == "") || got != c.matches {
			t.Errorf("%s: %q, %v", name, got, mismatch)
		} else if mismatch != nil && mismatch.String() != c.want {
			t.Errorf("%s:\n%s\nexpected\n%s", name, mismatch, c.want)
		}
	}
	_, d := Judge(p, []Known{old}, measured(t, "0:firmware", "4:shim", "4:evil", "7:keys"))
	detail := d.Detail()
	if detail["pcr"] != "4" || detail["entry"] != `entry 3, EV_IPL "evil"` || detail["known_digest"] != Digest(digest("grub")).String() || detail["release"] != "old" || len(detail["got"]) != 64 {
		t.Errorf("%v", detail)
	}
	if !d.Equal(d) || d.Equal(&Mismatch{PCR: 4, Why: d.Why}) {
		t.Error("two boots of one text are the same boot")
	}
}

func TestPCRList(t *testing.T) {
	for text, want := range map[string]string{"0-7": "0-7", "7,4,0-2": "0-2,4,7", "23": "23", "0 , 1": "0-1", "": "", "8-7": "", "24": "", "-1": "", "a": "", "0--2": ""} {
		mask, err := ParsePCRs(text)
		if (err == nil) != (want != "") || err == nil && ShowPCRs(mask) != want {
			t.Errorf("%q: %#x %v", text, mask, err)
		}
	}
}
