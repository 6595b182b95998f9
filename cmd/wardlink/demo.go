package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"wardlink/demo"
)

func (t *tool) demo() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use: "demo", Short: "Show the main job on this machine: monitor, gateway, server, SIGKILL, proof", Args: cobra.NoArgs,
		Long: "Starts an emulated TPM, a server, an agent and a bedside monitor for each gateway, kills one agent with SIGKILL\n" +
			"mid-stream, compares the monitors' accounts with the hospital's FHIR answers value by value, verifies the log offline\n" +
			"and proves one publish. Exits 1 unless nothing is missing, doubled or different and the log verifies.",
		Example: `  wardlink demo
  wardlink demo --recording ~/physionet/s00001-2896-10-10-00-31n
  wardlink demo --recording ~/physionet/03700181 --speed 1
  wardlink demo --gateways 5 --minutes 3 --summary summary.json
  wardlink demo --keep`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = t.out
			o.Plain = !isTerminal(t.out) || os.Getenv("NO_COLOR") != ""
			if t.json {
				o.Out = t.err
			}
			// A closed terminal or pipe ends the demonstration in order, as an interrupt does.
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP, syscall.SIGPIPE)
			defer stop()
			s, err := demo.Run(ctx, o)
			if t.json {
				if jerr := t.printJSON(s); err == nil {
					err = jerr
				}
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&o.Recording, "recording", "", "replay a PhysioNet record, numerics or waveforms (`PATH` of its .hea, without the suffix)")
	f.Float64Var(&o.Speed, "speed", 0, "replay `SECONDS` of the recording each second: 1 is real time, 0 as fast as it is acknowledged")
	f.IntVar(&o.Minutes, "minutes", 10, "simulated `MINUTES` of each monitor, a row a second")
	f.IntVar(&o.Gateways, "gateways", 1, "how many `GATEWAYS`, each with a TPM and a monitor")
	f.StringVar(&o.Summary, "summary", "", "write the figures as JSON to `FILE`")
	f.BoolVar(&o.Keep, "keep", false, "leave everything running and print what to try")
	return c
}

// isTerminal is enough to decide about colour and overwritten lines.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}
