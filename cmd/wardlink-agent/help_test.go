package main

import (
	"strings"
	"testing"
)

// TestEveryCommandExplainsItself: what it does, how it is called, an example, its flags.
func TestEveryCommandExplainsItself(t *testing.T) {
	for name := range helps {
		short := strings.TrimPrefix(name, "wardlink-agent ")
		if !strings.Contains(usage, "\n  "+name+" ") {
			t.Errorf("%s is not in the usage", name)
		}
		asked := strings.Fields(short)
		for _, args := range [][]string{append(asked, "--help"), append([]string{"help"}, asked...), append([]string{"help"}, asked[0])} {
			code, _, said := program(t, "", args...)
			if code != 0 || !strings.Contains(said, "Usage: "+name) && asked[0] != "buffer" || !strings.Contains(said, "\n  wardlink-agent "+asked[0]) || !strings.Contains(said, "-json") && short != "run" {
				t.Errorf("%v: exit %d\n%s", args, code, said)
			}
		}
	}
	if len(helps) < 12 {
		t.Errorf("%d commands", len(helps))
	}
}

// TestTyposAreAnswered: the mistake is the last word, and the only one.
func TestTyposAreAnswered(t *testing.T) {
	for args, want := range map[string]string{
		"rnu":            "wardlink-agent: unknown command \"rnu\"; did you mean run? ('wardlink-agent help' lists all)\n",
		"help rnu":       "wardlink-agent: unknown command \"rnu\"; did you mean run? ('wardlink-agent help' lists all)\n",
		"nothing":        "wardlink-agent: unknown command \"nothing\" ('wardlink-agent help' lists all)\n",
		"status --wacht": "wardlink-agent: flag provided but not defined: -wacht; see 'wardlink-agent status --help'\n",
		"version bed-7":  "wardlink-agent: unexpected argument \"bed-7\"\n",
	} {
		if code, _, said := program(t, "", strings.Fields(args)...); code != 2 || said != want {
			t.Errorf("%s: exit %d\n%s", args, code, said)
		}
	}
	if code, said, _ := program(t, "", "--version"); code != 0 || !strings.HasPrefix(said, "wardlink-agent") {
		t.Errorf("--version: exit %d\n%s", code, said)
	}
}
