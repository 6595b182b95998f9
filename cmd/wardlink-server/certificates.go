package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"wardlink/server"
)

func certificates(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("certificates", s)
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	terms, err := server.Terms(ctx, *dir)
	if err != nil {
		return err
	}
	var late []string
	for _, t := range terms {
		if t.State == "late" || t.State == "ended" {
			late = append(late, t.What+" "+t.Name)
		}
	}
	if *asJSON {
		if err := json.NewEncoder(s.out).Encode(terms); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "WHAT\tNAME\tUNTIL\tUSED\tSTATE\tRENEWED BY")
		for _, t := range terms {
			until, used := "no end", "-"
			if t.NotAfter != nil {
				until, used = t.NotAfter.UTC().Format("2006-01-02 15:04"), fmt.Sprintf("%.0f %%", 100*t.Used)
			} else if t.What == "server" || t.What == "gateways" {
				until = "each its own"
			}
			state := t.State
			if state == "" {
				state = "-"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", t.What, t.Name, until, used, state, t.Renewal)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if late != nil {
		return fmt.Errorf("late: %s", strings.Join(late, ", "))
	}
	return nil
}
