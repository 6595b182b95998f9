package bedside

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
)

func testAccount() *Account {
	a := &Account{patient: Patient{ID: "WL0001", Namespace: "WARDSIM", OID: "2.25.1234"}}
	for row := range rows(3) {
		if e := a.send(row); row.At.UnixMilli() != 1000 {
			a.acknowledge(e)
		}
	}
	return a
}

func TestAccount(t *testing.T) {
	a := testAccount()
	want := Totals{Messages: 3, MessagesAcknowledged: 2, Sent: 3, Acknowledged: 2, NoReadings: 3, NoReadingsAcknowledged: 2}
	if got := a.Totals(); got != want {
		t.Errorf("%+v", got)
	}
	readings := slices.Collect(a.Readings())
	if want := (Reading{Code: Code{MDC: 147842}, Measure: Measure{Unit: "/min"}, Value: "61", Time: 1000}); len(readings) != 6 || readings[2] != want {
		t.Errorf("%+v", readings)
	}
	if want := (Reading{Code: Code{MDC: 150456}, Measure: Measure{Unit: "%"}, Time: 2000, Acknowledged: true}); readings[5] != want || !readings[5].None() {
		t.Errorf("%+v", readings[5])
	}
}

// waveRow is two arrays: a lead with a missing sample, and one that only has a name.
func waveRow(at int64) Row {
	lead := &Channel{1, waveOf("II", "mV", 1), "0.001", 0, "500", -2048, 2047}
	other := &Channel{2, waveOf("Nasal & oral", "furlong", 2), "0.0257201646", -7, "62.5", -32768, 32767}
	return Row{At: time.UnixMilli(at), Waves: []Wave{
		{lead, time.UnixMilli(at), []int32{12, 13, -2048, -5}},
		{other, time.UnixMilli(at + 8), []int32{-32768, 32767}},
	}}
}

func TestAccountOfWaves(t *testing.T) {
	a := testAccount()
	a.acknowledge(a.send(waveRow(5000)))
	a.send(waveRow(6000))
	want := Totals{Messages: 5, MessagesAcknowledged: 3, Sent: 11, Acknowledged: 6, NoReadings: 7, NoReadingsAcknowledged: 4}
	if got := a.Totals(); got != want {
		t.Errorf("%+v", got)
	}
	waves := slices.Collect(a.Waves())
	if len(waves) != 4 || waves[1].Code() != (Code{Local: "Nasal & oral"}) || waves[1].Measure() != (Measure{Text: "furlong"}) ||
		waves[0].Code() != (Code{MDC: 131330}) || waves[0].Measure() != (Measure{Unit: "mV"}) || !waves[1].Acknowledged || waves[2].Acknowledged {
		t.Errorf("%+v", waves)
	}
}

func TestAccountGoesThroughAFile(t *testing.T) {
	a := testAccount()
	a.acknowledge(a.send(waveRow(5000)))
	a.send(waveRow(6000))
	var file bytes.Buffer
	if err := a.Write(&file); err != nil {
		t.Fatal(err)
	}
	whole := file.String()
	b, err := ReadAccount(&file)
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := b.Write(&again); err != nil || again.String() != whole {
		t.Errorf("%v\n%s became\n%s", err, whole, again.String())
	}
	if b.Totals() != a.Totals() || b.Patient() != a.Patient() || !slices.Equal(slices.Collect(b.Readings()), slices.Collect(a.Readings())) {
		t.Errorf("%+v became %+v", a.Totals(), b.Totals())
	}
	for lines := strings.SplitAfter(whole, "\n"); len(lines) > 1; lines = lines[:len(lines)-1] {
		cut := strings.Join(lines[:len(lines)-2], "")
		if _, err := ReadAccount(strings.NewReader(cut)); err == nil {
			t.Errorf("an account cut to %d lines was taken for whole", len(lines)-2)
		}
	}
}

func TestAccountIsReadWhileItGrows(t *testing.T) {
	a := &Account{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for row := range rows(1000) {
			a.acknowledge(a.send(row))
		}
	}()
	for n := 0; n < 2000; {
		n = 0
		for range a.Readings() {
			n++
		}
	}
	<-done
	if a.Totals().Acknowledged != 1000 {
		t.Errorf("%+v", a.Totals())
	}
}

func FuzzReadAccount(f *testing.F) {
	var file bytes.Buffer
	whole := testAccount()
	whole.acknowledge(whole.send(waveRow(5000)))
	if err := whole.Write(&file); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add([]byte(`{"patient":{"id":"x"},"readings":1}` + "\n" + `{"mdc":1,"value":"1","time":-5}`))
	f.Add([]byte(`{"patient":{"id":"x"},"readings":0}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ReadAccount(bytes.NewReader(data))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := a.Write(&out); err != nil {
			t.Fatal(err)
		}
		b, err := ReadAccount(&out)
		if err != nil || b.Totals() != a.Totals() {
			t.Errorf("%+v became %+v, %v", a.Totals(), b, err)
		}
	})
}

// A ward's day: the account of 32 h of ten signals a minute, and much more, stays small.
func BenchmarkAccount(b *testing.B) {
	a := &Account{}
	row := Row{At: time.UnixMilli(0), Values: make([]Value, 10)}
	b.ReportAllocs()
	for b.Loop() {
		a.acknowledge(a.send(row))
	}
}
