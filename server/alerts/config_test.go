package alerts

import (
	"strings"
	"testing"
	"time"
)

func TestSettingsAreChecked(t *testing.T) {
	hook := Target{Name: "pager", Webhook: "https://pager.example/x", SecretFile: "/etc/secret"}
	with := func(change func(*Target)) Settings {
		one := hook
		change(&one)
		return Settings{Targets: []Target{one}}
	}
	for says, s := range map[string]Settings{
		"name":             with(func(t *Target) { t.Name = "Pager 1" }),
		"either webhook":   with(func(t *Target) { t.Syslog = "udp://a" }),
		"give either":      with(func(t *Target) { t.Webhook = "" }),
		"https://host":     with(func(t *Target) { t.Webhook = "http://pager.example/token-abc" }),
		"secret_file":      with(func(t *Target) { t.SecretFile = "" }),
		"minimum":          with(func(t *Target) { t.Minimum = "loud" }),
		"timeout":          with(func(t *Target) { t.Timeout = time.Hour }),
		"udp://host:514":   {Targets: []Target{{Name: "s", Syslog: "siem.example"}}},
		"facility":         {Targets: []Target{{Name: "s", Syslog: "udp://siem", Facility: "kern"}}},
		"ca_file is":       {Targets: []Target{{Name: "s", Syslog: "udp://siem", CAFile: "/x"}}},
		"is taken":         {Targets: []Target{hook, hook}},
		"no type of alert": {Repeat: map[Type]time.Duration{"gateway-quiet": time.Hour}},
		"at least 1m":      {Repeat: map[Type]time.Duration{GatewaySilent: time.Second}},
		"absolute":         {BackupStamp: "stamp"},
		"gateway_silent":   {Limits: Limits{GatewaySilent: -time.Minute}},
		"disk_free":        {Limits: Limits{DiskFreePercent: 99}},
	} {
		err := s.Check()
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
		if err != nil && strings.Contains(err.Error(), "token-abc") {
			t.Errorf("an error shows a URL that may hold a token: %v", err)
		}
	}
	good := Settings{Targets: []Target{hook, {Name: "siem", Syslog: "tls://siem.example", CAFile: "/x"}, {Name: "local", Syslog: "unix:/dev/log"}}}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	if n, addr, err := splitSyslog("tls://siem.example"); n != "tls" || addr != "siem.example:6514" || err != nil {
		t.Error(n, addr, err)
	}
	if n, addr, err := splitSyslog("tcp://[::1]:99"); n != "tcp" || addr != "[::1]:99" || err != nil {
		t.Error(n, addr, err)
	}
}
