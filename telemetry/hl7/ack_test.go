package hl7

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

var ackTime = time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.FixedZone("", 3600))

func TestAck(t *testing.T) {
	msg := func(accept, application string) string {
		return "MSH|^~\\&|DEV^1^EUI-64|FAC|WL|HOSP|20260101||ORU^R01^ORU_R01|ID 7|T|2.6|||" + accept + "|" + application + "||UNICODE UTF-8\rOBX|1|NM|1||SECRET\r"
	}
	for _, c := range []struct {
		accept, application string
		code                AckCode
		want                string // MSA-1; "" for no answer
	}{
		{"", "", Accept, "AA"},
		{"", "", Error, "AE"},
		{"", "", Reject, "AR"},
		{"AL", "NE", Accept, "CA"},
		{"AL", "NE", Error, "CE"},
		{"AL", "NE", Reject, "CR"},
		{"al", "", Accept, "CA"},
		{"AL", "AL", Accept, "CA"},
		{"NE", "AL", Accept, "AA"}, // GE B40
		{"NE", "AL", Reject, "AR"},
		{"NE", "NE", Accept, ""},
		{"NE", "", Reject, ""},
		{"", "NE", Accept, "AA"},
		{"", "AL", Accept, "AA"},
		{"ER", "NE", Accept, ""},
		{"ER", "NE", Reject, "CR"},
		{"SU", "NE", Accept, "CA"},
		{"SU", "NE", Error, ""},
		{"??", "NE", Accept, "CA"},
	} {
		got := string(Ack([]byte(msg(c.accept, c.application)), c.code, "over | long", ackTime))
		if c.want == "" {
			if got != "" {
				t.Errorf("%+v: %q", c, got)
			}
			continue
		}
		lines := strings.Split(got, "\r")
		if len(lines) != 3 || lines[2] != "" {
			t.Fatalf("%+v: %q", c, got)
		}
		f := strings.Split(lines[0], "|")
		id := f[9]
		if want := `MSH|^~\&|WL|HOSP|DEV^1^EUI-64|FAC|20260102030405.678+0100||ACK^R01^ACK|` + id + `|T|2.6||||||UNICODE UTF-8`; lines[0] != want {
			t.Errorf("%q, want %q", lines[0], want)
		}
		if want := "MSA|" + c.want + `|ID 7|over \F\ long`; lines[1] != want {
			t.Errorf("%q, want %q", lines[1], want)
		}
		if len(id) != 18 || strings.Contains(got, "SECRET") {
			t.Errorf("%q", got)
		}
	}
}

func TestAckWithoutMSH(t *testing.T) {
	for _, raw := range []string{"", "GET / HTTP/1.1\r\n", "MSH", "OBX|1|NM|1||SECRET"} {
		got := string(Ack([]byte(raw), Reject, "no MSH", ackTime))
		if !strings.HasPrefix(got, `MSH|^~\&|||||20260102030405.678+0100||ACK|WL`) || !strings.HasSuffix(got, "|P|2.6\rMSA|AR||no MSH\r") {
			t.Errorf("%q: %q", raw, got)
		}
	}
}

// A device that does not speak UTF-8 compares MSA-2 with the bytes that it sent.
func TestAckEchoesBytes(t *testing.T) {
	got := Ack([]byte("MSH|^~\\&|||||||ORU^R01|\xe9\x00\x0b1|P|2.3\r"), Accept, "", ackTime)
	if !bytes.HasSuffix(got, []byte("MSA|AA|\xe91\r")) {
		t.Errorf("%q", got)
	}
}

func TestAckIDsDiffer(t *testing.T) {
	raw := []byte("MSH|^~\\&|||||||ORU^R01|1|P|2.3\r")
	if bytes.Equal(Ack(raw, Accept, "", ackTime), Ack(raw, Accept, "", ackTime.Add(time.Nanosecond))) {
		t.Error("two acknowledgements of one message have one control id")
	}
}

func FuzzAck(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s, byte('A'))
	}
	for _, s := range odd {
		f.Add([]byte(s), byte('R'))
	}
	f.Fuzz(func(t *testing.T, raw []byte, code byte) {
		codes := []AckCode{Accept, Error, Reject}
		got := Ack(raw, codes[int(code)%3], "text", ackTime)
		if got == nil {
			return
		}
		if _, _, _, err := header(string(got)); err != nil {
			t.Errorf("%q: %v", got, err)
		}
		if bytes.Count(got, []byte("\r")) != 2 || !bytes.Contains(got, []byte("\rMSA")) || bytes.ContainsAny(got, "\v\x1c\n") {
			t.Errorf("%q", got)
		}
	})
}
