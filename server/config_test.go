package server

import (
	"strings"
	"testing"
	"time"
)

// FuzzParseConfig: the file is an administrator's, but a typo must end in a message, and what passes must pass Check and come back
// the same from what init writes.
func FuzzParseConfig(f *testing.F) {
	c := DefaultConfig()
	c.TrustDomain, c.Names = "ward.example", []string{"localhost", "10.0.0.1", "::1"}
	f.Add(configText(c))
	f.Add([]byte("trust_domain: ward.example\nnames: [localhost]\ngatways: \":8883\"\n"))
	f.Add([]byte("trust_domain: ward.example\nnames: [a]\nhospital_tls: {cert: x}\n"))
	f.Add([]byte("trust_domain: ward.example\nnames: [a]\nexpired_grace: 90m30s\n"))
	f.Add([]byte("trust_domain: ward.example\nnames: [a]\nlimits: {sessions: 5, publishes_per_gateway: 7}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("names: [\"\\x00\"]\ntrust_domain: !!binary eA==\n"))
	f.Add([]byte("names: !tag "))
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
			again.Gateways != c.Gateways || again.Hospital != c.Hospital || again.Operators != c.Operators || again.Log != c.Log || again.Retention != c.Retention || again.ExpiredGrace != c.ExpiredGrace || again.Limits != c.Limits {
			t.Errorf("%+v became %+v", c, again)
		}
	})
}

func TestExpiredGrace(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 72 * time.Hour, "expired_grace: 0": 0, "expired_grace: 0h": 0, "expired_grace: 24h": 24 * time.Hour, "expired_grace: 72h": 72 * time.Hour, "expired_grace: 1m": time.Minute,
		"expired_grace: 73h": -1, "expired_grace: -1h": -1, "expired_grace: 30s": -1, "expired_grace: 5": -1, "expired_grace: always": -1, "expired_grace: [1h]": -1,
	} {
		c, err := parseConfig([]byte("trust_domain: ward.example\nnames: [localhost]\n" + text + "\n"))
		if (err != nil) != (want < 0) || err == nil && time.Duration(c.ExpiredGrace) != want {
			t.Errorf("%q: %s, %v", text, c.ExpiredGrace, err)
		}
	}
}

func TestLimits(t *testing.T) {
	for text, good := range map[string]bool{
		"limits: {}": true, "limits: {sessions: 30000, handshakes: 64}": true, "limits: {sessions: 0}": true,
		"limits: {sessions: -1}": false, "limits: {handshakes: 70000}": false, "limits: {arrivals: 3}": false, "limits: {kilobytes_per_gateway: 1}": false,
		"limits: {session: 1}": false, "limits: 5": false,
	} {
		c, err := parseConfig([]byte("trust_domain: ward.example\nnames: [localhost]\n" + text + "\n"))
		if (err == nil) != good {
			t.Errorf("%q: %+v, %v", text, c.Limits, err)
		}
	}
	l := Limits{Sessions: 3, GatewayPublishes: 7, AddressKilobytes: 512}.ingest()
	if l.Sessions != 3 || l.Gateway.Publishes != 7 || l.Address.Bytes != 512<<10 {
		t.Errorf("%+v", l)
	}
}

func TestParseConfigIsBounded(t *testing.T) {
	if _, err := parseConfig([]byte(strings.Repeat("#\n", maxConfig))); err == nil {
		t.Error("a file of any length is parsed")
	}
}
