package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"text/tabwriter"

	"wardlink/server"
)

// size reckons the disk that a hospital takes.
func size(_ context.Context, args []string, s streams) error {
	fs := flag.NewFlagSet("wardlink-server size", flag.ContinueOnError)
	fs.SetOutput(s.err)
	l := server.DefaultLoad()
	dir := fs.String("dir", "", "take the retention from the server's `DIR` (default: the default retention)")
	fs.IntVar(&l.Gateways, "gateways", 0, "`N` gateways")
	fs.IntVar(&l.Sources, "sources", l.Sources, "`N` sources of each gateway")
	fs.Float64Var(&l.Rate, "rate", l.Rate, "`MESSAGES` of each source a second")
	fs.IntVar(&l.Readings, "readings", l.Readings, "`N` readings of each message")
	fs.Float64Var(&l.Alarms, "alarms", l.Alarms, "alarm `MESSAGES` of each source a day")
	waves := fs.String("waveforms", "", "waveforms of each source, `CHANNELSxHZ` such as 4x250 (default: none)")
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, nil); err != nil {
		return err
	}
	if l.Gateways == 0 {
		return usageError{errors.New("--gateways is missing: how many there will be; try 'wardlink-server size --gateways 100 --waveforms 4x250'")}
	}
	var err error
	if *waves != "" {
		if l.Channels, l.Hz, err = server.ParseWaveforms(*waves); err != nil {
			return usageError{err}
		}
	}
	if err := l.Check(); err != nil {
		return usageError{err}
	}
	keep := server.DefaultRetention()
	if *dir != "" {
		c, err := server.LoadConfig(*dir)
		if err != nil {
			return err
		}
		keep = c.Retention
	}
	return printSize(server.Reckon(l, keep), *asJSON, s)
}

func printSize(z server.Size, asJSON bool, s streams) error {
	if asJSON {
		return json.NewEncoder(s.out).Encode(z)
	}
	l := z.Load
	fmt.Fprintf(s.out, "gateways %d, sources of each %d; of each source: messages a second %g, readings in each %d, alarms a day %g",
		l.Gateways, l.Sources, l.Rate, l.Readings, l.Alarms)
	if l.Channels > 0 {
		fmt.Fprintf(s.out, ", waveforms %d of %d Hz", l.Channels, l.Hz)
	}
	fmt.Fprintf(s.out, "\nin all %.0f publishes a second\n\n", z.PublishDay/86400)
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLASS\tWHAT\tA DAY\tKEPT FOR\tAFTER A YEAR")
	day := 0.0
	for _, c := range z.Classes {
		keep := c.Keep.String()
		if c.Keep == 0 {
			keep = "ever"
		}
		day += c.PerDay
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.Class, c.What, amount(c.PerDay), keep, amount(c.AfterYear))
	}
	fmt.Fprintf(w, "all\t\t%s\t\t%s\n", amount(day), amount(z.AfterYear))
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\nEach further year adds %s. Leave half as much again free: for a backup under way, and for a month that is worse than this.\n", amount(z.EveryYear))
	return nil
}

// amount is a size as people say it, in powers of ten as disks are sold.
func amount(n float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for ; n >= 1000 && i < len(units)-1; i++ {
		n /= 1000
	}
	if n < 10 && i > 0 {
		return fmt.Sprintf("%.1f %s", n, units[i])
	}
	return fmt.Sprintf("%.0f %s", n, units[i])
}
