package server

import (
	"strings"
	"testing"
)

// FuzzParseConfig: the file is an administrator's, but a typo must end in a message, and what passes must pass Check and come back
// the same from what init writes.
func FuzzParseConfig(f *testing.F) {
	c := DefaultConfig()
	c.TrustDomain, c.Names = "ward.example", []string{"localhost", "10.0.0.1", "::1"}
	f.Add(configText(c))
	f.Add([]byte("trust_domain: ward.example\nnames: [localhost]\ngatways: \":8883\"\n"))
	f.Add([]byte("trust_domain: ward.example\nnames: [a]\nhospital_tls: {cert: x}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("names: [\"\\x00\"]\ntrust_domain: !!binary eA==\n"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error that says nothing")
			}
			return
		}
		if err := c.Check(); err != nil {
			t.Errorf("passes, though %v", err)
		}
		c.HospitalTLS.Cert, c.HospitalTLS.Key = "", "" // init writes them as a comment
		again, err := parseConfig(configText(c))
		if err != nil {
			t.Fatalf("init would write what the server does not read: %v\n%s", err, configText(c))
		}
		if again.TrustDomain != c.TrustDomain || strings.Join(again.Names, ",") != strings.Join(c.Names, ",") ||
			again.Gateways != c.Gateways || again.Hospital != c.Hospital || again.Operators != c.Operators || again.Log != c.Log || again.Retention != c.Retention {
			t.Errorf("%+v became %+v", c, again)
		}
	})
}

func TestParseConfigIsBounded(t *testing.T) {
	if _, err := parseConfig([]byte(strings.Repeat("#\n", maxConfig))); err == nil {
		t.Error("a file of any length is parsed")
	}
}
