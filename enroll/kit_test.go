package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/telemetry/seal"
)

func testKit(t testing.TB) (Kit, ed25519.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	records, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	public, config, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, vkey, err := note.GenerateKey(rand.Reader, "ward.example/log/1")
	if err != nil {
		t.Fatal(err)
	}
	return Kit{
		TrustDomain: "ward.example", Servers: []string{"wardlink.ward.example:8883", "10.1.2.3:443"},
		Roots: []*x509.Certificate{root}, RecordsKey: records.Public(), ConfigKey: public, LogKey: vkey,
	}, config
}

func TestKitRoundTrip(t *testing.T) {
	k, _ := testKit(t)
	data, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseKit(data)
	if err != nil {
		t.Fatal(err)
	}
	if got.TrustDomain != k.TrustDomain || strings.Join(got.Servers, " ") != strings.Join(k.Servers, " ") || got.LogKey != k.LogKey ||
		!got.Roots[0].Equal(k.Roots[0]) || !bytes.Equal(got.ConfigKey, k.ConfigKey) || !bytes.Equal(got.RecordsKey.Bytes(), k.RecordsKey.Bytes()) {
		t.Errorf("kit changed on its way through its file: %+v", got)
	}
	again, err := got.Marshal()
	if err != nil || !bytes.Equal(again, data) {
		t.Error("the same kit gives other bytes, so its fingerprint would say nothing")
	}
	if len(got.ShortFingerprint()) != 19 {
		t.Errorf("short fingerprint %q", got.ShortFingerprint())
	}
	for _, secret := range []string{"PRIVATE", "passphrase"} {
		if strings.Contains(string(data), secret) {
			t.Errorf("kit holds %q", secret)
		}
	}
}

func TestKitRefusesWhatItCannotTrust(t *testing.T) {
	k, _ := testKit(t)
	good, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) []byte {
		out := strings.Replace(string(good), old, new, 1)
		if out == string(good) {
			t.Fatalf("%q is not in the kit", old)
		}
		return []byte(out)
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"not JSON", []byte("kit"), "wardlink provision kit"},
		{"newer version", replace(`"wardlink_kit": 1`, `"wardlink_kit": 2`), "version 2"},
		{"unknown field", replace(`"trust_domain"`, `"more": 1, "trust_domain"`), "more"},
		{"trailing data", append(bytes.Clone(good), '{'), "after the end"},
		{"no server", replace(`"wardlink.ward.example:8883",`, `"wardlink.ward.example",`), "host:port"},
		{"trust domain", replace(`"ward.example"`, `"Ward Example"`), "trust_domain"},
		{"no root", replace("-----BEGIN CERTIFICATE-----", "-----BEGIN NONSENSE-----"), "roots[0]"},
		{"config key", replace(`"config_key": "`, `"config_key": "AAAA`), "config_key"},
		{"records key", replace(`"records_key": "`, `"records_key": "AAAA`), "records_key"},
		{"log key", replace(`"log_key": "ward.example`, `"log_key": "other.example`), "log_key"},
		{"too long", bytes.Repeat([]byte(" "), maxKit+1), "at most"},
	} {
		if _, err := ParseKit(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v; expected one that says %q", c.name, err, c.want)
		}
	}
}

func TestConfigurationIsForOneTargetAndOnlyForward(t *testing.T) {
	k, key := testKit(t)
	doc, err := SignConfiguration(Configuration{Gateway: "gw-1", Version: 7, Ward: "icu", Profile: "default", Lanes: 15}, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := VerifyConfiguration(doc, k.ConfigKey, "gw-1", "", 6)
	if err != nil || c.Version != 7 || c.Ward != "icu" || c.Lanes != 15 {
		t.Fatalf("good configuration: %+v, %v", c, err)
	}
	site, err := SignConfiguration(Configuration{ForSite: "main", Version: 1}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyConfiguration(site, k.ConfigKey, "gw-1", "main", 0); err != nil {
		t.Errorf("configuration of the site: %v", err)
	}
	_, foreign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := SignConfiguration(Configuration{Gateway: "gw-1", Version: 8}, foreign)
	if err != nil {
		t.Fatal(err)
	}
	// A signature over the same bytes for another purpose must not pass.
	var parts signedConfig
	if err := configDec.Unmarshal(doc, &parts); err != nil {
		t.Fatal(err)
	}
	parts.Signature = ed25519.Sign(key, append([]byte("wardlink/time/1\x00"), parts.Body...))
	purpose, err := configEnc.Marshal(parts)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct {
		name          string
		doc           []byte
		gateway, site string
		inForce       uint64
		want          string
	}{
		{"foreign key", other, "gw-1", "", 0, "not signed"},
		{"another purpose", purpose, "gw-1", "", 0, "not signed"},
		{"another gateway", doc, "gw-2", "", 0, `for gateway "gw-1"`},
		{"the same version", doc, "gw-1", "", 7, "not newer"},
		{"an older version", doc, "gw-1", "", 9, "not newer"},
		{"another site", site, "gw-1", "annexe", 0, `site "main"`},
		{"unknown site", site, "gw-1", "", 0, `site "main"`},
		{"flipped bit", flip(doc, len(doc)/3), "gw-1", "", 0, "configuration"},
		{"empty", nil, "gw-1", "", 0, "configuration"},
	} {
		if _, err := VerifyConfiguration(bad.doc, k.ConfigKey, bad.gateway, bad.site, bad.inForce); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: error %v; expected one that says %q", bad.name, err, bad.want)
		}
	}
	if _, err := SignConfiguration(Configuration{Version: 1}, key); err == nil {
		t.Error("a configuration for nobody was signed")
	}
}

func TestFingerprint(t *testing.T) {
	a, b := Fingerprint([32]byte{1}), Fingerprint([32]byte{2})
	if a == b || len(a) != 19 || strings.Count(a, "-") != 3 || strings.ToUpper(a) != a {
		t.Error(a, b)
	}
}

func flip(b []byte, at int) []byte {
	c := bytes.Clone(b)
	c[at] ^= 1
	return c
}

func FuzzParseKit(f *testing.F) {
	k, _ := testKit(f)
	data, err := k.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"wardlink_kit":1,"servers":[":1"],"roots":["-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseKit(data)
		if err != nil {
			return
		}
		if _, err := k.Marshal(); err != nil {
			t.Errorf("a kit that was read cannot be written: %v", err)
		}
	})
}

func FuzzVerifyConfiguration(f *testing.F) {
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	key := ed25519.NewKeyFromSeed(seed)
	public := key.Public().(ed25519.PublicKey)
	doc, err := SignConfiguration(Configuration{Gateway: "gw-1", Version: 7, Ward: "icu"}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte{0xa2, 1, 0x40, 2, 0x40})
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := VerifyConfiguration(data, public, "gw-1", "", 0)
		if err == nil && !bytes.Equal(data, doc) {
			t.Errorf("accepted %+v from bytes that were never signed", c)
		}
	})
}

func TestSettingsAreBounded(t *testing.T) {
	_, key := testKit(t)
	many := make([]string, MaxServers+1)
	for i := range many {
		many[i] = fmt.Sprintf("10.0.0.%d:8883", i)
	}
	for _, bad := range []struct {
		name string
		set  Settings
		want string
	}{
		{"too many servers", Settings{Servers: many}, "1 to 16"},
		{"no port", Settings{Servers: []string{"10.0.0.1:8883", "10.0.0.2"}}, "servers[1]"},
		{"port 0", Settings{Servers: []string{"10.0.0.1:0"}}, "servers[0]"},
		{"no host", Settings{Servers: []string{":8883"}}, "servers[0]"},
		{"an address that steers", Settings{Servers: []string{"a\x1b[2J:8883"}}, "servers[0]"},
		{"an address too long", Settings{Servers: []string{strings.Repeat("a", 255) + ":8883"}}, "servers[0]"},
		{"twice", Settings{Servers: []string{"10.0.0.1:8883", "10.0.0.1:8883"}}, "twice"},
		{"too often", Settings{ReportEvery: 999}, "report_every"},
		{"too seldom", Settings{ReportEvery: 3_600_001}, "report_every"},
	} {
		c := Configuration{ForSite: "main", Version: 1, Settings: bad.set}
		if _, err := SignConfiguration(c, key); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: signing: %v", bad.name, err)
		}
		// Whoever signs without looking does not get through either.
		body, err := configEnc.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := configEnc.Marshal(signedConfig{Body: body, Signature: ed25519.Sign(key, append([]byte(configPurpose), body...))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyConfiguration(doc, key.Public().(ed25519.PublicKey), "gw-1", "main", 0); err == nil {
			t.Errorf("%s: accepted", bad.name)
		}
	}
}

func TestOverlay(t *testing.T) {
	site := Settings{Servers: []string{"site:1"}, ReportEvery: 5000}
	for _, c := range []struct{ own, want Settings }{
		{Settings{}, site},
		{Settings{Servers: []string{"own:1"}}, Settings{Servers: []string{"own:1"}, ReportEvery: 5000}},
		{Settings{ReportEvery: 7000}, Settings{Servers: []string{"site:1"}, ReportEvery: 7000}},
	} {
		if got := Overlay(site, c.own); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v over the site's: %+v", c.own, got)
		}
	}
}

// An agent of today reads what a later server signs: keys that it does not know are nothing to it.
func TestUnknownKeysAreIgnored(t *testing.T) {
	_, key := testKit(t)
	body, err := configEnc.Marshal(map[int]any{1: "gw-1", 3: 2, 4: 1, 7: 15, 19: []string{"later"}, 31: map[int]int{1: 2}})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := configEnc.Marshal(signedConfig{Body: body, Signature: ed25519.Sign(key, append([]byte(configPurpose), body...))})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := VerifyConfiguration(doc, key.Public().(ed25519.PublicKey), "gw-1", "", 1); err != nil || c.Version != 2 || c.Lanes != 15 {
		t.Errorf("%+v, %v", c, err)
	}
}
