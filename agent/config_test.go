package agent

import (
	"strings"
	"testing"
)

const goodConfig = `
kit: /etc/wardlink/kit.json
state: /var/lib/wardlink-agent
tpm: swtpm:/run/tpm.sock
buffer: {cap: 512MB}
sources:
  - id: bed-7
    mllp: 10.20.0.1:2575
    allow: [10.20.0.0/16]
    time_zone: Europe/Berlin
`

func TestConfig(t *testing.T) {
	c, err := ParseConfig([]byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := c.BufferCap(); n != 512<<20 {
		t.Errorf("buffer.cap is %d bytes", n)
	}
	if c.Log != "text" || len(c.Sources) != 1 || c.Sources[0].ID != "bed-7" {
		t.Errorf("%+v", c)
	}
	least, err := ParseConfig([]byte("sources: [{id: bed-7, mllp: '127.0.0.1:2575'}]"))
	if err != nil || least.TPM != "/dev/tpmrm0" || least.Console != "/run/wardlink-agent/issue" {
		t.Errorf("the least configuration: %+v, %v", least, err)
	}
}

// TestConfigErrorsNameKeyAndMend: whoever installs a gateway reads these.
func TestConfigErrorsNameKeyAndMend(t *testing.T) {
	replace := func(old, new string) string {
		out := strings.Replace(goodConfig, old, new, 1)
		if out == goodConfig {
			t.Fatalf("%q is not in the configuration", old)
		}
		return out
	}
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", replace("kit:", "kti:"), "kti"},
		{"unknown key names its line", replace("    mllp:", "    mlpp:"), "mlpp"},
		{"no sources", "kit: /k", "sources: none"},
		{"tpm", replace("swtpm:/run/tpm.sock", "tpm0"), "/dev/tpmrm0"},
		{"cap", replace("512MB", "lots"), "512MB or 8GB"},
		{"proxy", "proxy: {url: 'proxy:3128'}\n" + goodConfig, "proxy.url: expected http://host:port"},
		{"proxy with a password", "proxy: {url: 'http://me:secret@proxy:3128'}\n" + goodConfig, "proxy.url: user and password do not belong into it"},
		{"credentials without a proxy", "proxy: {credentials: /etc/wardlink/proxy}\n" + goodConfig, "proxy.url: expected"},
		{"credentials", "proxy: {url: 'http://proxy:3128', credentials: proxy}\n" + goodConfig, "proxy.credentials: expected the absolute path"},
		{"a tag without a value", "sources: !tag ", "YAML that cannot be read"},
		{"small cap", replace("512MB", "1MB"), "at least 64MB"},
		{"huge cap", replace("512MB", "99999999999GB"), "buffer.cap"},
		{"zone", replace("Europe/Berlin", "Mars/Base"), "sources[0]: time_zone"},
		{"network", replace("10.20.0.0/16", "10.20.0.0"), "sources[0]: allow[0]"},
		{"address", replace("10.20.0.1:2575", "2575"), "address:port"},
		{"id", replace("bed-7", "Bed 7"), "sources[0]: id"},
		{"log", goodConfig + "log: loud\n", "text or json"},
		{"state", replace("/var/lib/wardlink-agent", "/"+strings.Repeat("x", 96)), "path of 108 bytes"},
		{"doubled", goodConfig + "  - {id: bed-7, mllp: '127.0.0.1:1'}\n", "sources[1].id"},
		{"doubled port", goodConfig + "  - {id: bed-8, mllp: '10.20.0.1:2575', allow: [10.0.0.0/8]}\n", "sources[1].mllp"},
	} {
		if _, err := ParseConfig([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v; expected one that says %q", c.name, err, c.want)
		}
	}
	if _, err := LoadConfig(t.TempDir() + "/agent.yaml"); err == nil || !strings.Contains(err.Error(), "agent.yaml") {
		t.Errorf("missing file: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte("sources: [{id: a, mllp: ':1'}]"))
	f.Add([]byte("buffer: 7\n"))
	f.Add([]byte("sources: !tag "))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err == nil && len(c.Sources) == 0 {
			t.Error("accepted a configuration without sources")
		}
	})
}
