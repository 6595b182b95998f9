package verify_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"wardlink/enroll/verify"
)

func TestRequestIsBounded(t *testing.T) {
	for name, change := range map[string]func(*verify.Request){
		"certificates":       func(r *verify.Request) { r.EKCerts = make([][]byte, 9) },
		"a long certificate": func(r *verify.Request) { r.EKCerts[0] = make([]byte, 9<<10) },
		"a long structure":   func(r *verify.Request) { r.AttestParams.Public = make([]byte, 3<<10) },
		"TPM 1.2":            func(r *verify.Request) { r.TPMInfo.Version = 1 },
		"TCSD's format":      func(r *verify.Request) { r.AttestParams.UseTCSDActivationFormat = true },
		"a strange serial":   func(r *verify.Request) { r.Serial = "a\n" },
		"a strange disk":     func(r *verify.Request) { r.Former = "gw 1" },
	} {
		r := request(t)
		change(r)
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify.ParseRequest(data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	whole := readFile(t, "request.json")
	for name, data := range map[string][]byte{"a long request": append(whole, bytes.Repeat([]byte(" "), verify.MaxRequest)...), "half of one": whole[:len(whole)/2]} {
		if _, err := verify.ParseRequest(data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPlainSerial(t *testing.T) {
	for s, want := range map[string]bool{"": true, "SN 12-34~": true, strings.Repeat("1", verify.MaxSerial): true, strings.Repeat("1", verify.MaxSerial+1): false,
		" 1": false, "1 ": false, "a\x1fb": false, "a\x7fb": false, "ü1": false} {
		if got := verify.PlainSerial(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}
