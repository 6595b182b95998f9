package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"wardlink/demo"
)

func (t *tool) demo() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use: "demo", Short: "Show the main job on this machine, on a bad day: SIGKILLs, a cut network, attacks, proof", Args: none(""),
		Long: "Starts an emulated TPM, an agent and a bedside monitor for each gateway, and a server. While the monitors send, it kills an\n" +
			"agent and the server with SIGKILL, cuts the network, and attacks with a foreign certificate and with a gateway that was\n" +
			"carried away, which is then revoked. It compares the monitors' accounts with the hospital's FHIR answers value by value,\n" +
			"verifies the log offline, finds every refusal in it with actor and reason, and proves one publish. Exits 1 unless nothing\n" +
			"is missing, doubled or different, every batch is accounted for, every attack was refused and the log verifies.\n\n" +
			"With --disaster it backs the server up while the monitors send, destroys the server's directory later, restores the old\n" +
			"backup, and lets the gateways bring what it lacks.\n\n" +
			"With --postgres --nodes N the gateways reach N ingest nodes behind HAProxy, and the node that has a gateway's session is\n" +
			"killed mid-stream.\n\n" +
			"With --chaos it kills and cuts at random instead: a SIGKILL in two seconds and more, also amid starts, and cuts\n" +
			"between them.",
		Example: `  wardlink demo
  wardlink demo --recording ~/physionet/s00001-2896-10-10-00-31n
  wardlink demo --recording ~/physionet/03700181 --speed 1
  wardlink demo --gateways 5 --minutes 3 --summary summary.json
  wardlink demo --chaos 60 --gateways 5
  wardlink demo --chaos 60 --seed 4711                      # the same blows again
  wardlink demo --postgres --nodes 3
  wardlink demo --postgres --nodes 3 --chaos 60 --gateways 3
  wardlink demo --disaster
  wardlink demo --keep`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = t.out
			o.Plain = !isTerminal(t.out) || os.Getenv("NO_COLOR") != ""
			if t.json {
				o.Out = t.err
			}
			// A closed terminal or pipe ends the demonstration in order, as an interrupt does. SIGPIPE itself cannot tell: it also comes
			// of the connections that the demonstration breaks.
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
			defer stop()
			signal.Ignore(syscall.SIGPIPE)
			o.Out = &watched{o.Out, stop}
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
	f.IntVar(&o.Chaos, "chaos", 0, "kill agents and server and cut the network at random, for `SECONDS`")
	f.Uint64Var(&o.Seed, "seed", 0, "of --chaos: the `N` that a former run printed repeats its blows (default: drawn)")
	f.BoolVar(&o.Postgres, "postgres", false, "keep journal and records in a PostgreSQL server of the demonstration's own (the distribution's packages)")
	f.IntVar(&o.Nodes, "nodes", 0, "with --postgres: `N` ingest nodes behind HAProxy, one of which is killed mid-stream")
	f.BoolVar(&o.Former, "former-agent", false, "the agent beside this program is of a former release: leave out what that does not know")
	f.BoolVar(&o.Disaster, "disaster", false, "lose the server's directory, restore an old backup, and have the gateways refill it")
	f.StringVar(&o.Summary, "summary", "", "write the figures as JSON to `FILE`")
	f.BoolVar(&o.Keep, "keep", false, "leave everything running and print what to try")
	return c
}

// watched tells when nobody reads any more.
type watched struct {
	io.Writer
	gone func()
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		w.gone()
	}
	return n, err
}
