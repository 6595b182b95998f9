package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"wardlink/agent"
)

// clock shows wall clock, offset, floor and trust, as the running agent has them; or sets the floor back by a token.
func clock(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flags("clock", stderr)
	path, asJSON := configFlag(fs), fs.Bool("json", false, "print JSON")
	token := fs.String("token", "", "with reset: the `TOKEN` that 'wardlink clock token' made for this gateway's challenge")
	rest, err := parseWith(fs, args, 1)
	if err != nil {
		return err
	}
	reset := len(rest) == 1
	switch {
	case reset && rest[0] != "reset":
		return usageError{fmt.Errorf("expected 'clock' or 'clock reset --token TOKEN'")}
	case reset && *token == "":
		return usageError{fmt.Errorf("--token is missing: 'wardlink clock token GATEWAY CHALLENGE' makes one, by an operator of the hospital's; 'wardlink-agent clock' shows the challenge")}
	case !reset && *token != "":
		return usageError{fmt.Errorf("--token belongs to 'clock reset'")}
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		return err
	}
	var facts agent.ClockFacts
	if reset {
		if facts, err = agent.ResetClock(ctx, cfg, *token); err != nil {
			return err
		}
	} else {
		s, err := agent.AskStatus(ctx, cfg)
		if err != nil {
			return err
		}
		facts = s.Time
	}
	if *asJSON {
		return printJSON(stdout, facts)
	}
	return printClock(stdout, facts)
}

func printClock(stdout io.Writer, c agent.ClockFacts) error {
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "wall clock\t%s\n", c.Wall.Format(time.RFC3339))
	if c.Trusted {
		fmt.Fprintf(w, "hospital's time\t%s\n", c.Now.Format(time.RFC3339))
		offset, since := time.Duration(*c.Offset)*time.Millisecond, time.Duration(c.Since)*time.Millisecond
		fmt.Fprintf(w, "offset\t%s, give or take %s (hospital's time minus wall clock's)\n", offset, time.Duration(c.Uncertainty)*time.Millisecond)
		fmt.Fprintf(w, "trusted\tyes: the hospital told the time %s ago, signed by its config key, through %s, in this boot\n", since.Round(time.Second), printable(c.LearntFrom))
	} else {
		fmt.Fprintf(w, "trusted\tno: the hospital has not told the time since this start; data is kept, sent, and not deleted\n")
		if c.Trouble != "" {
			fmt.Fprintf(w, "last try\t%s\n", printable(c.Trouble))
		}
	}
	fmt.Fprintf(w, "floor\t%s, from %s: no present is earlier\n", c.Floor.Format(time.RFC3339), c.FloorFrom)
	if c.Behind {
		fmt.Fprintf(w, "\tthe wall clock is before the floor: there is no real-time clock, or its battery is empty; times are repaired by the hospital\n")
	}
	if c.Ahead {
		fmt.Fprintf(w, "\tthe hospital's time is before the floor: some clock was ahead once; look at the server's (wardlink clock); if that is right, set the floor back with a token\n")
	}
	if c.Kept != nil {
		fmt.Fprintf(w, "kept\t%s: the floor that the next boot begins with\n", c.Kept.Format(time.RFC3339))
	}
	if c.Steps > 0 {
		fmt.Fprintf(w, "set\tthe wall clock was set %d times since the start, the last time by %s, %s ago\n", c.Steps,
			(time.Duration(c.LastStep) * time.Millisecond).Round(100*time.Millisecond), (time.Duration(c.LastStepAgo) * time.Millisecond).Round(time.Second))
	}
	fmt.Fprintf(w, "challenge\t%s: if the floor is wrong, an operator makes a token of it: wardlink clock token GATEWAY %s\n", c.Challenge, c.Challenge)
	fmt.Fprintf(w, "boot\t%s\n", c.Boot)
	fmt.Fprintf(w, "kernel's clock\t%s\n", map[bool]string{true: "synchronised (NTP)", false: "not synchronised"}[c.Synchronised])
	return w.Flush()
}
