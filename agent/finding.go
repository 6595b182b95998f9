package agent

import (
	"fmt"
	"slices"
	"strings"
)

// Level is how bad a finding is.
type Level string

// The levels.
const (
	Well    Level = "well"
	Warning Level = "warning" // it will stop telemetry, or costs something, unless somebody acts
	Stops   Level = "stops"   // telemetry of a source, or of the whole gateway, does not reach the hospital now
)

// Finding is one thing that was looked at.
type Finding struct {
	Area  string `json:"area"`           // what part: "configuration", "TPM", "server", ...
	Name  string `json:"name,omitempty"` // which of them, where there are several: a server, a source, a lane
	Step  string `json:"step,omitempty"` // which step towards it
	Level Level  `json:"level"`          //
	Found string `json:"found"`          // what was found, in plain words
	Mend  string `json:"mend,omitempty"`
}

// Worst is the worst level of some findings; Well for none.
func Worst(findings []Finding) Level {
	worst := Well
	for _, f := range findings {
		switch {
		case f.Level == Stops:
			return Stops
		case f.Level == Warning:
			worst = Warning
		}
	}
	return worst
}

// Unwell are the findings that want somebody's attention, the worst first, else in their order.
func Unwell(findings []Finding) []Finding {
	var out []Finding
	for _, level := range []Level{Stops, Warning} {
		for _, f := range findings {
			if f.Level == level {
				out = append(out, f)
			}
		}
	}
	return slices.Clip(out)
}

// Count is a number of things, in words that agree with it: "1 batch", "3 batches".
func Count[N int | uint64](n N, noun string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(noun, "ch"):
		noun += "es"
	default:
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
