package main

import (
	"bytes"
	"strings"
	"testing"

	"wardlink/agent"
	"wardlink/agent/doctor"
)

// TestDoctorKeepsItsColumns: however long a source's id is, what was found begins in one column, and so does its mend.
func TestDoctorKeepsItsColumns(t *testing.T) {
	var r doctor.Report
	for _, name := range []string{"", "b", "icu-3-bed-7-of-the-long-name"} {
		f := agent.Finding{Area: "source", Name: name, Level: agent.Warning, Found: "FOUND"}
		f.Mend = "MEND"
		r.Findings = append(r.Findings, f)
	}
	var out bytes.Buffer
	if err := printReport(&out, r, false, ink(false), 80); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, line := range strings.Split(out.String(), "\n") {
		for _, word := range []string{"FOUND", "MEND"} {
			if at := strings.Index(line, word); at >= 0 {
				found++
				if at != 24 {
					t.Errorf("%q begins in column %d, want 24", line, at)
				}
			}
		}
	}
	if found != 6 {
		t.Errorf("%d of 6 findings and mends:\n%s", found, out.String())
	}
}
