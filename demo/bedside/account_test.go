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
	if want := (Reading{MDC: 147842, Unit: "/min", Value: "61", Time: 1000}); len(readings) != 6 || readings[2] != want {
		t.Errorf("%+v", readings)
	}
	if want := (Reading{MDC: 150456, Unit: "%", Time: 2000, Acknowledged: true}); readings[5] != want || !readings[5].None() {
		t.Errorf("%+v", readings[5])
	}
}

func TestAccountGoesThroughAFile(t *testing.T) {
	a := testAccount()
	var file bytes.Buffer
	if err := a.Write(&file); err != nil {
		t.Fatal(err)
	}
	whole := file.String()
	b, err := ReadAccount(&file)
	if err != nil {
		t.Fatal(err)
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
	if err := testAccount().Write(&file); err != nil {
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
