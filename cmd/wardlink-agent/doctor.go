package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"wardlink/agent"
	"wardlink/agent/doctor"
	"wardlink/enroll/label"
)

// runDoctor ends with 0 when all is well, 1 when something stops telemetry now or nothing could be looked at, and 2 when something
// will stop it, or costs something, unless somebody acts.
func runDoctor(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flags("doctor", stderr)
	path, asJSON := configFlag(fs), fs.Bool("json", false, "print JSON")
	odd := fs.Bool("odd", false, "show only what is not well")
	watch := fs.Bool("watch", false, "show step by step how the gateway comes up, until the hospital has seen it")
	if err := parse(fs, args); err != nil {
		return asVerdict(err)
	}
	if *watch {
		return watchDoctor(ctx, *path, stdout, *asJSON)
	}
	r := doctor.Examine(ctx, *path)
	var err error
	if *asJSON {
		err = printJSON(stdout, r)
	} else {
		err = printReport(stdout, r, *odd, inkFor(stdout), widthOf(stdout))
	}
	switch {
	case err != nil:
		return verdict{1, err}
	case ctx.Err() != nil:
		return verdict{1, ctx.Err()}
	case r.Level == agent.Stops:
		return verdict{1, nil}
	case r.Level == agent.Warning:
		return verdict{2, nil}
	}
	return nil
}

// printReport groups the findings by what they are about. Below each that is not well stands its mend.
func printReport(out io.Writer, r doctor.Report, odd bool, pen ink, width int) error {
	counts := map[agent.Level]int{}
	label := map[agent.Level]string{agent.Well: "well ", agent.Warning: "WARN ", agent.Stops: "STOPS"}
	former := ""
	for _, f := range r.Findings {
		counts[f.Level]++
		if odd && f.Level == agent.Well {
			continue
		}
		subject := f.Area
		if f.Name != "" {
			subject += " " + f.Name
		}
		if f.Step != "" {
			if subject != former {
				if _, err := fmt.Fprintln(out, subject); err != nil {
					return err
				}
			}
			former, subject = subject, "  "+f.Step
		} else {
			former = subject
		}
		if utf8.RuneCountInString(subject) > 16 { // on a line of its own, so that what was found stays in its column
			subject += fmt.Sprintf("\n%-16s", "")
		}
		if _, err := fmt.Fprintf(out, "%-16s %s  %s\n", subject, pen.level(f.Level, label[f.Level]), wrap(f.Found, 24, width)); err != nil {
			return err
		}
		if f.Level != agent.Well && f.Mend != "" {
			if _, err := fmt.Fprintf(out, "%-16s    ->  %s\n", "", wrap(f.Mend, 24, width)); err != nil {
				return err
			}
		}
	}
	if r.Fingerprint != "" {
		if _, err := fmt.Fprintf(out, "\n%s", qr(r.Fingerprint, pen)); err != nil {
			return err
		}
	}
	summary := pen.level(agent.Well, "all is well")
	switch {
	case counts[agent.Stops] > 0:
		summary = pen.level(agent.Stops, fmt.Sprintf("stops telemetry: %d of %d findings; worth attention: %d more", counts[agent.Stops], len(r.Findings), counts[agent.Warning]))
	case counts[agent.Warning] > 0:
		summary = pen.level(agent.Warning, fmt.Sprintf("telemetry flows; worth attention: %d of %d findings", counts[agent.Warning], len(r.Findings)))
	}
	_, err := fmt.Fprintf(out, "\n%s\n", summary)
	return err
}

// qr is a fingerprint for a scanner and for a person. Where colours can be had it is black on white, otherwise drawn for a dark screen.
func qr(fingerprint string, pen ink) string {
	code, err := label.QR(fingerprint)
	if err != nil {
		return fingerprint + "\n"
	}
	var b strings.Builder
	for _, l := range code.Lines(!bool(pen)) {
		b.WriteString("  " + pen.paint("30;107", l) + "\n")
	}
	return b.String() + "\n  fingerprint " + fingerprint + "\n"
}
