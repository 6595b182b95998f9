package nearest

import (
	"strings"
	"testing"
)

func TestWord(t *testing.T) {
	words := []string{"run", "status", "doctor", "kit", "config", "version", "hl7", "line"}
	for typed, want := range map[string]string{
		"rnu": "run", "runn": "run", "un": "run", "ran": "run", "stauts": "status", "docter": "doctor", "verison": "version", "lime": "line", "run": "run",
		"": "", "x": "", "nothing": "", "restart": "", "hl": "hl7", strings.Repeat("run", 1000): "",
	} {
		if got := Word(typed, words); got != want {
			t.Errorf("%.20q: %q, want %q", typed, got, want)
		}
	}
	if got := Hint("rnu", words); got != "; did you mean run?" || Hint("nothing", words) != "" {
		t.Errorf("%q", got)
	}
}
