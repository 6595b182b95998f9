package load

import (
	"strings"
	"testing"
)

func TestVariable(t *testing.T) {
	const name = "WARDLINK_TEST_VARIABLE"
	for text, want := range map[string]float64{"": 2.5, "4": 4, "0.5": 0.5} {
		t.Setenv(name, text)
		if got, err := variable(name, 2.5); err != nil || got != want {
			t.Errorf("%q is %g, %v; expected %g", text, got, err, want)
		}
	}
	for _, text := range []string{"2,5", "ten", "1s", "NaN", "inf"} {
		t.Setenv(name, text)
		if got, err := variable(name, 2.5); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q is taken as %g, %v", text, got, err)
		}
	}
}
