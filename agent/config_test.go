package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"wardlink/agent/source"
	"wardlink/internal/strictyaml"
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
	binding := func(list string) string { return goodConfig + "    bindings: [" + list + "]\n" }
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
		{"binding's key", binding("{adress: 10.20.0.7, bed: ICU-7}"), "adress"},
		{"binding's address", binding("{address: 10.20.0.0/24, bed: ICU-7}"), "bindings[0].address: \"10.20.0.0/24\"; expected one device's"},
		{"binding that allow forbids", binding("{address: 10.21.0.7, bed: ICU-7}"), "may not connect, since 'allow'"},
		{"binding of nothing", binding("{bed: ICU-7}"), "bindings[0]: expected exactly one of certificate, address, msh3 and device"},
		{"binding twice", binding("{msh3: A, bed: ICU-7}, {msh3: A, bed: ICU-8}"), "bindings[1]: msh3 A is bound by bindings[0] already, to bed ICU-7"},
		{"binding's id is the source's", binding("{msh3: A, bed: ICU-7, id: bed-7}"), "sources[0].bindings[0].id: \"bed-7\" is sources[0]'s already"},
		{"binding's id", binding("{msh3: A, bed: ICU-7, id: 'Bed 7'}"), "bindings[0].id"},
		{"binding of a device with an id", binding("{device: A, bed: ICU-7, id: b}"), "not with device"},
		{"binding by certificate without tls", binding("{certificate: m, bed: ICU-7}"), "no device is asked for one"},
		{"limits", goodConfig + "    limits: {messages: 100, bytes: 1KB}\n", "limits.bytes: 1024 is less than one message"},
		{"limits in words", goodConfig + "    limits: {bytes: lots}\n", "limits.bytes: \"lots\"; expected bytes a second"},
		{"connections", goodConfig + "    limits: {connections: 5000}\n", "limits.connections: 5000; at most 1000"},
		{"tls without key", goodConfig + "    tls: {certificate: /etc/wardlink/d.pem}\n", "tls.key: expected the absolute path"},
		{"tls of a relative path", goodConfig + "    tls: {certificate: d.pem, key: /k}\n", "tls.certificate: expected the absolute path"},
		{"tls names without a CA", goodConfig + "    tls: {certificate: /d.pem, key: /k, allow: [m]}\n", "tls.allow: without client_ca"},
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
	f.Add([]byte(goodConfig + "    bindings: [{address: 10.20.0.7, bed: ICU-7, id: icu-7}, {device: E, bed: B}, {msh3: M, bed: B}, {certificate: c, bed: B}]\n" +
		"    limits: {messages: 9, burst: 9, bytes: 1MB, connections: 9, per_address: 9}\n    tls: {certificate: /c, key: /k, client_ca: /a, allow: [c]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err == nil && len(c.Sources) == 0 {
			t.Error("accepted a configuration without sources")
		}
	})
}

// TestWhatIsCheckedStarts: an agent starts with what `config check` calls good, and with nothing else. `provision kit --agent`, on another
// machine, refuses the same but for names that only the box can look up.
func TestWhatIsCheckedStarts(t *testing.T) {
	b := newBox(t, t.TempDir())
	sockets := t.TempDir()
	for text, good := range map[string]bool{
		`{id: a, mllp: "127.0.0.1:0"}`:                                       true,
		`{id: a, mllp: "localhost:0"}`:                                       true,
		`{id: a, mllp: "[::1]:0"}`:                                           true,
		`{id: a, mllp: "0.0.0.0:0", allow: [10.0.0.0/8]}`:                    true,
		`{id: a, mllp: "0.0.0.0:0"}`:                                         false,
		`{id: a, mllp: ":0"}`:                                                false,
		`{id: a, mllp: "[::]:0", allow: []}`:                                 false,
		`{id: a, mllp: "10.0.0.1:2575"}`:                                     false,
		`{id: a, mllp: "gateway.example:2575"}`:                              false,
		`{id: a, mllp: "127.0.0.1:70000"}`:                                   false,
		`{id: a, mllp: "127.0.0.1:hl7"}`:                                     false,
		`{id: a, mllp: "127.0.0.1"}`:                                         false,
		`{id: a, mllp: "127.0.0.1:0", limits: {burst: 3}}`:                   false,
		`{id: a, mllp: "127.0.0.1:0", limits: {connections: 1001}}`:          false,
		`{id: a, mllp: "127.0.0.1:0", limits: {bytes: 1KB}}`:                 false,
		`{id: a, mllp: "127.0.0.1:0", tls: {certificate: /no, key: /no}}`:    true, // the source says so, and takes the files once they are there
		`{id: a, mllp: "127.0.0.1:0", tls: {certificate: /no}}`:              false,
		`{id: a, mllp: "127.0.0.1:0", bindings: [{device: d}]}`:              false,
		`{id: a, mllp: "127.0.0.1:0", bindings: [{certificate: c, bed: B}]}`: false,
		`{id: a, mllp: "127.0.0.1:0", time_zone: Mars/Base}`:                 false,
		`{id: a, socket: DIR/a, bindings: [{device: p, bed: B}]}`:            true,
		`{id: a, socket: DIR/a, bindings: [{msh3: p, bed: B}]}`:              false,
		`{id: a, socket: DIR/a, mode: "0999"}`:                               false,
		`{id: a, socket: DIR/a, limits: {burst: 3}}`:                         false,
		`{id: a, socket: a}`:                                                 false,
		`{id: a, socket: DIR/a, users: [root], groups: ["4711"]}`:            true,
		`{id: a, socket: DIR/a, group: no-such-group}`:                       false,
		`{id: a, socket: DIR/a, users: [no-such-user]}`:                      false,
	} {
		data := []byte("sources: [" + strings.ReplaceAll(text, "DIR", sockets) + "]")
		cfg, err := ParseConfig(data)
		kit := err
		if err == nil {
			err = cfg.CheckHere()
		}
		if (err == nil) != good || kit != nil && good || kit == nil && !good && !strings.Contains(text, "no-such") {
			t.Errorf("%s: checked %v, on another machine %v", text, err, kit)
		}
		var raw Config // as an agent has it that did not check
		if err := strictyaml.Decode(data, &raw); err != nil {
			t.Fatal(err)
		}
		next := b.cfg
		next.Sources = raw.Sources
		a, err := New(next, slog.New(slog.DiscardHandler))
		if (err == nil) != good {
			t.Errorf("%s: started with %v", text, err)
		}
		if err != nil {
			continue
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.Run(over); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestSourceConfigReachesTheSource: a configuration with everything is what the source is made of.
func TestSourceConfigReachesTheSource(t *testing.T) {
	c, err := ParseConfig([]byte(goodConfig + `    bindings:
      - {certificate: m7.ward.example, bed: ICU-7, id: icu-7}
      - {address: 10.20.0.8, bed: ICU-8, id: icu-8}
      - {msh3: CMS-9, bed: ICU-9}
      - {device: 0003B1FFFE000001, bed: ICU-10}
    limits: {messages: 100, burst: 300, bytes: 2MB, connections: 50, per_address: 5}
    tls: {certificate: /etc/wardlink/d.pem, key: /etc/wardlink/d.key, client_ca: /etc/wardlink/ca.pem, allow: [m7.ward.example]}
`))
	if err != nil {
		t.Fatal(err)
	}
	s := c.Sources[0]
	bindings, err := s.bindings()
	if err != nil || len(bindings) != 4 || bindings[0].Certificate != "m7.ward.example" || bindings[0].ID != "icu-7" || bindings[1].Address.String() != "10.20.0.8" ||
		bindings[2].MSH3 != "CMS-9" || bindings[3].Device != "0003B1FFFE000001" || bindings[3].Bed != "ICU-10" {
		t.Errorf("%+v, %v", bindings, err)
	}
	limits, err := s.limits()
	if want := (source.Limits{Messages: 100, Burst: 300, Bytes: 2 << 20, PerAddress: 5}); err != nil || limits != want || s.Limits.Connections != 50 {
		t.Errorf("%+v, %v", limits, err)
	}
	if secure := s.Secure(); secure == nil || secure.ClientCA != "/etc/wardlink/ca.pem" || len(secure.Allow) != 1 {
		t.Errorf("%+v", secure)
	}
	many := goodConfig + "    bindings:\n"
	for i := range 256 {
		many += fmt.Sprintf("      - {msh3: M%d, bed: B, id: b-%d}\n", i, i)
	}
	if _, err := ParseConfig([]byte(many)); err == nil || !strings.Contains(err.Error(), "have 257 ids; a report holds 256") {
		t.Errorf("more ids than a report holds: %v", err)
	}
}
