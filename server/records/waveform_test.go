package records_test

import (
	"crypto/sha256"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wardlink/server/records"
	"wardlink/telemetry"
)

// second is a monitor's message with a second of each channel.
func second(patient string, n int, channels ...[]int32) telemetry.Message {
	m := telemetry.Message{
		Source: "bed-1", Digest: sha256.Sum256(fmt.Appendf(nil, "wave/%s/%d", patient, n)), Received: telemetry.Stamp{Wall: start + int64(n)*1000 + 1020, Mono: 5},
		Type: "ORU^W01^ORU_W01", ControlID: fmt.Sprint("W", n), Sender: "MON", Processing: "T", SentAt: "20260528",
		Patient: telemetry.Patient{ID: patient, Authority: "HOSP&2.25.77&ISO", Location: "ICU^1"},
	}
	for i, samples := range channels {
		m.Waveforms = append(m.Waveforms, telemetry.Waveform{
			Index: uint32(2*i + 1), Type: "NA", Code: telemetry.Code{MDC: 131329 + uint32(i), ID: fmt.Sprint(131329 + i), Name: "MDC_Y", Sys: "MDC"},
			Label: "II", Unit: telemetry.Unit{Sent: "266418^MDC_DIM_MILLI_VOLT^MDC", UCUM: "mV"}, SubID: "1.4.1.1", Status: "F",
			Time: fmt.Sprintf("w%d", n), At: start + int64(n)*1000, Device: "EUI", Period: "2.777777777778", Factor: "0.001", Origin: "-0.5", Lower: "-2", Upper: "2",
			Samples: samples,
		})
	}
	return m
}

func chunks(n int64) func(records.Stats) bool {
	return func(s records.Stats) bool { return s.Waveforms == n }
}

func TestWaveformsComeBackAsTheyWere(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	noise := make([]int32, 500)
	for i := range noise {
		noise[i] = int32(sha256.Sum256([]byte{byte(i), byte(i >> 8)})[0]) << (i % 23)
	}
	m := second("p1", 1, []int32{1, telemetry.MissingSample, -2, math.MaxInt32, -math.MaxInt32}, noise, nil, slices.Repeat([]int32{telemetry.MissingSample}, 300))
	m.Waveforms[1].Time, m.Waveforms[1].At, m.Waveforms[1].Flags = "later", start+1500, "PN~TEST"
	m.Waveforms[2].Marks, m.Waveforms[2].Factor, m.Waveforms[2].Lower = telemetry.MarkNoReading, "", ""
	m.Waveforms[3].Time, m.Waveforms[3].At, m.Waveforms[3].Marks = "", 0, telemetry.MarkTimeUnread
	g.publish("gw-1", g.sealBatch(m))
	f.until("stored", chunks(4))
	s := f.store()
	page, err := s.Search(f.ctx, records.Query{Patients: []string{s.PatientID("urn:oid:2.25.77", "p1")}, Limit: 10})
	if err != nil || len(page.Observations) != 4 || page.More {
		t.Fatal(page, err)
	}
	slices.SortFunc(page.Observations, func(a, b records.Observation) int { return strings.Compare(a.ID, b.ID) })
	for i, o := range page.Observations {
		want := m.Waveforms[i]
		if want.Marks&telemetry.MarkTimeUnread != 0 {
			want.At = m.Received.Wall
		}
		w := o.Waveform
		got := telemetry.Waveform{
			Index: want.Index, Type: o.Type, Code: o.Code, Label: w.Label, Unit: o.Unit, SubID: o.SubID, Flags: o.Flags, Status: o.Status,
			Time: o.Time, At: o.At, Device: o.Device, Marks: o.Marks,
			Period: w.Period, Factor: w.Factor, Origin: w.Origin, Lower: w.Lower, Upper: w.Upper, Samples: w.Samples,
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("channel %d: %s", i, d)
		}
		if o.Patient.Value != "p1" || o.Gateway != "gw-1" || o.Source != "bed-1" || o.Process != "T" || o.Received != m.Received || o.Journaled == 0 ||
			!strings.HasSuffix(o.ID, fmt.Sprintf("-%d", want.Index)) {
			t.Errorf("%+v", o)
		}
		one, err := s.Observation(f.ctx, o.ID)
		if err != nil || cmp.Diff(one, o, cmp.AllowUnexported(records.Observation{})) != "" {
			t.Errorf("by id: %+v %v", one, err)
		}
	}
}

func TestWaveformsAreStoredOnce(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	m := second("p1", 1, []int32{1, 2, 3}, []int32{4})
	g.publish("gw-1", g.sealBatch(m))
	f.until("stored", chunks(2))
	// The message was sent again and travels in another batch, beside a new one.
	g.publish("gw-1", g.sealBatch(m, second("p1", 2, []int32{5})))
	f.until("stored again", func(s records.Stats) bool { return s.Batches == 2 })
	r := f.open()
	stats, err := r.Stats(f.ctx)
	if err != nil || stats.Waveforms != 3 || stats.Samples != 5 || stats.Messages != 2 || stats.Observations != 0 {
		t.Errorf("%+v, %v", stats, err)
	}
	var rows, samples int64
	if err := f.db.QueryRow(f.ctx, "SELECT COUNT(*), SUM(count) FROM waveforms").Scan(&rows, &samples); err != nil || rows != 3 || samples != 5 {
		t.Errorf("%d rows of %d samples, %v", rows, samples, err)
	}
}

// marked gives what was found page by page: values of readings, and the first sample of waveforms.
func (f *fixture) marked(q records.Query) (out []string, pages int) {
	f.t.Helper()
	s := f.store()
	q.Patients = []string{s.PatientID("urn:oid:2.25.77", "p1")}
	for {
		page, err := s.Search(f.ctx, q)
		if err != nil {
			f.t.Fatal(err)
		}
		pages++
		for _, o := range page.Observations {
			if o.Waveform != nil {
				out = append(out, fmt.Sprint("w", o.Waveform.Samples[0]))
			} else {
				out = append(out, o.Value)
			}
		}
		if !page.More {
			return out, pages
		}
		last := page.Observations[len(page.Observations)-1].Position()
		q.After = &last
	}
}

func TestWaveformsAndReadingsArePagedTogether(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for n := range 6 {
		// A reading stands at the same instant as its second, and a message can hold both.
		both := second("p1", n, slices.Repeat([]int32{int32(n)}, 100))
		both.Observations = message("p1", n, fmt.Sprint(n)).Observations
		g.publish("gw-1", g.sealBatch(both))
	}
	f.until("stored", chunks(6))
	want := strings.Fields("w5 5 w4 4 w3 3 w2 2 w1 1 w0 0")
	for limit := 1; limit < 14; limit++ {
		if got, _ := f.marked(records.Query{Limit: limit}); !slices.Equal(got, want) {
			t.Errorf("pages of %d: %q", limit, got)
		}
	}
	// A reading takes about 1 KB, a chunk of 100 samples of one digit 200 bytes more.
	for room, most := range map[int]int{1: 12, 2400: 6, 5000: 3, 1 << 20: 1} {
		got, pages := f.marked(records.Query{Limit: 100, Room: room})
		if !slices.Equal(got, want) || pages != most {
			t.Errorf("%d bytes a page: %q in %d pages; expected %d", room, got, pages, most)
		}
	}
	waves := func(s records.Series) bool { return s.Code.MDC == 131329 && s.UCUM == "mV" && !s.UnitUnknown }
	if got, _ := f.marked(records.Query{Limit: 100, Match: waves, From: ms(start + 1000), To: ms(start + 3000)}); !slices.Equal(got, []string{"w2", "w1"}) {
		t.Errorf("by code and time: %q", got)
	}
}

// change is what no part of the server does.
func (f *fixture) change(query string, args ...any) {
	f.t.Helper()
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error { _, err := tx.Exec(query, args...); return err }); err != nil {
		f.t.Fatal(err)
	}
}

// A chunk goes with its message, and the rest of what is found stays.
func TestWaveformsGoWithTheirMessage(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(second("p1", 1, []int32{1}, []int32{2}), second("p1", 2, []int32{3})))
	f.until("stored", chunks(3))
	f.change("DELETE FROM messages WHERE control = 'W1'")
	if got, _ := f.marked(records.Query{Limit: 10}); !slices.Equal(got, []string{"w3"}) {
		t.Errorf("%q", got)
	}
}

// A damaged chunk is an error and no signal.
func TestDamagedSamplesAreNotShown(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(second("p1", 1, slices.Repeat([]int32{7, 9}, 200))))
	f.until("stored", chunks(1))
	var kept []byte
	if err := f.db.QueryRow(f.ctx, "SELECT samples FROM waveforms").Scan(&kept); err != nil || kept[0] != 1 || len(kept) > 200 {
		t.Fatalf("%d bytes of form %d, %v", len(kept), kept[0], err)
	}
	s := f.store()
	for name, samples := range map[string][]byte{
		"empty": {}, "a form only": {1}, "another form": {2, 1}, "cut": kept[:len(kept)/2], "one less": {0, 1}, "no tokens": {0, 0x80},
	} {
		f.change("UPDATE waveforms SET samples = $1", samples)
		if page, err := s.Search(f.ctx, records.Query{Patients: []string{s.PatientID("urn:oid:2.25.77", "p1")}, Limit: 1}); err == nil {
			t.Errorf("%s: shown as %v", name, page.Observations[0].Waveform.Samples)
		}
	}
}

// What a source's waveforms come to shows by the way that the hospital's search goes.
func TestWaveformsAreVisible(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(second("p1", 1, []int32{1}, []int32{2})))
	f.until("stored", chunks(2))
	s := f.store()
	account, err := s.Account(f.ctx, "gw-1")
	if err != nil || len(account.Sources) != 1 || account.Sources[0].Readings != 2 {
		t.Fatalf("%+v, %v", account, err)
	}
	if found, err := s.Visible(f.ctx, account.Sources[0]); err != nil || !found {
		t.Errorf("found %v, %v", found, err)
	}
	f.change("UPDATE waveforms SET samples = $1", []byte{2})
	if found, err := s.Visible(f.ctx, account.Sources[0]); err == nil {
		t.Errorf("samples that cannot be read: found %v", found)
	}
}

func BenchmarkStoreWaveforms(b *testing.B) {
	f := setup(b)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	samples := make([]int32, 500)
	for i := range samples {
		phase := float64(i) / 500
		samples[i] = int32(900*math.Exp(-math.Pow((phase-0.3)*60, 2)) + 4*math.Sin(float64(i*i)))
	}
	channels := slices.Repeat([][]int32{samples}, 8)
	n := 0
	for b.Loop() {
		for range 50 {
			g.publish("gw-1", g.sealBatch(second("p1", n, channels...)))
			n++
		}
		f.until("stored", chunks(int64(8*n)))
	}
	b.ReportMetric(float64(8*n)/b.Elapsed().Seconds(), "chunks/s")
	var bytes int64
	if err := f.db.QueryRow(f.ctx, "SELECT SUM(length(samples)) FROM waveforms").Scan(&bytes); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(bytes)/float64(8*n*500), "bytes/sample")
	disk, _, err := f.db.Sizes(f.ctx)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(disk)/float64(8*n*500), "disk-bytes/sample")
}
