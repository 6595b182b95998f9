package main

import (
	"slices"
	"strings"
	"testing"

	"wardlink/server/api/client"
)

func TestSettingsFile(t *testing.T) {
	got, err := parseConfigFile([]byte("# main\nservers:\n  - wardlink.hospital.example:443\n  - 10.20.0.5:8883\nreport_every: 5m\n"))
	if err != nil || !slices.Equal(got.Servers, []string{"wardlink.hospital.example:443", "10.20.0.5:8883"}) || got.ReportEvery != "5m" {
		t.Errorf("%+v, %v", got, err)
	}
	for text, want := range map[string]string{
		"server: [a:1]\n":                     `line 1: unknown key "server"; did you mean "servers"?`,
		"servers: [a:1]\nreport-every: 5m\n":  `line 2: unknown key "report-every"; did you mean "report_every"?`,
		"colour: red\n":                       "expected servers or report_every",
		"":                                    "--clear",
		"servers: [a:1]\n---\nservers: [b]\n": "more than one document",
		"servers: {a: 1}\n":                   "servers",
		"servers: [a:1]\nservers: [b:1]\n":    "servers",
		"[1]\n":                               "",
		strings.Repeat("#", 70_000):           "64 KB",
	} {
		if _, err := parseConfigFile([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v; expected %q", text, err, want)
		}
	}
}

func TestRollbackGoesToTheLastDifference(t *testing.T) {
	set := func(v uint64, servers ...string) client.ConfigVersion {
		return client.ConfigVersion{Version: v, Settings: client.ConfigSettings{Servers: servers}}
	}
	one := client.ConfigTarget{Target: "icu-7", Versions: []client.ConfigVersion{set(5, "b:1"), set(4, "b:1"), set(3, "a:1"), set(2)}}
	for to, want := range map[uint64]uint64{0: 3, 2: 2, 4: 4} {
		if v, err := rollbackTo(one, to); err != nil || v.Version != want {
			t.Errorf("--to %d: version %d, %v", to, v.Version, err)
		}
	}
	if _, err := rollbackTo(one, 9); err == nil || !strings.Contains(err.Error(), "no version 9") {
		t.Errorf("%v", err)
	}
	one.Versions = one.Versions[:2]
	if _, err := rollbackTo(one, 0); err == nil || !strings.Contains(err.Error(), "no earlier version") {
		t.Errorf("%v", err)
	}
}

func TestDifference(t *testing.T) {
	got := configDifference(client.ConfigSettings{Servers: []string{"a:1"}, ReportEvery: "60s"}, client.ConfigSettings{Servers: []string{"b:1", "a:1"}, ReportEvery: "60s"})
	if want := []string{"- servers: a:1", "+ servers: b:1, a:1", "  report_every: 60s"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func FuzzSettingsFile(f *testing.F) {
	for _, seed := range []string{"servers: [a:1]\nreport_every: 5m\n", "server: x", "- a", "a: &a [*a]", "{", "servers:\n\t- a"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseConfigFile(data)
	})
}
