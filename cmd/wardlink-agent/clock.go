package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"wardlink/agent"
)

// clock shows wall clock, offset, floor and trust, as the running agent has them.
func clock(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flags("clock", stderr)
	path, asJSON := configFlag(fs), fs.Bool("json", false, "print JSON")
	if err := parse(fs, args); err != nil {
		return err
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		return err
	}
	s, err := agent.AskStatus(ctx, cfg)
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, s.Time)
	}
	return printClock(stdout, s.Time)
}

func printClock(stdout io.Writer, c agent.ClockFacts) error {
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "wall clock\t%s\n", c.Wall.Format(time.RFC3339))
	if c.Trusted {
		fmt.Fprintf(w, "hospital's time\t%s\n", c.Now.Format(time.RFC3339))
		offset, since := time.Duration(*c.Offset)*time.Millisecond, time.Duration(c.Since)*time.Millisecond
		fmt.Fprintf(w, "offset\t%s, give or take %s (hospital's time minus wall clock's)\n", offset, time.Duration(c.Uncertainty)*time.Millisecond)
		fmt.Fprintf(w, "trusted\tyes: the hospital told the time %s ago\n", since.Round(time.Second))
	} else {
		fmt.Fprintf(w, "trusted\tno: the hospital has not told the time since this start; data is kept, sent, and not deleted\n")
		if c.Trouble != "" {
			fmt.Fprintf(w, "last try\t%s\n", c.Trouble)
		}
	}
	fmt.Fprintf(w, "floor\t%s, from %s: no present is earlier\n", c.Floor.Format(time.RFC3339), c.FloorFrom)
	if c.Behind {
		fmt.Fprintf(w, "\tthe wall clock is before the floor: there is no real-time clock, or its battery is empty; times are repaired by the hospital\n")
	}
	if c.Ahead {
		fmt.Fprintf(w, "\tthe hospital's time is before the floor: some clock was ahead once; look at the server's: wardlink clock\n")
	}
	fmt.Fprintf(w, "kernel's clock\t%s\n", map[bool]string{true: "synchronised (NTP)", false: "not synchronised"}[c.Synchronised])
	return w.Flush()
}
