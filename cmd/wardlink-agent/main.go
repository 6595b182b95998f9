// Command wardlink-agent is the gateway's daemon.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"wardlink/internal/build"
)

const usage = `wardlink-agent carries telemetry from bedside devices to the hospital, sealed, by way of this gateway's TPM.

Usage:
  wardlink-agent run          --config FILE           serve until SIGTERM
  wardlink-agent identity     --config FILE [--json]  show the TPM's endorsement key hash and fingerprint
  wardlink-agent status       --config FILE [--json]  ask the running agent
  wardlink-agent buffer check --config FILE [--json]  check the buffer's files (agent stopped)
  wardlink-agent version      [--modules] [--json]

The default FILE is /etc/wardlink/agent.yaml. All its keys, with their defaults:

  kit: /etc/wardlink/kit.json         # what 'wardlink provision kit' made
  state: /var/lib/wardlink-agent      # identity and buffer
  tpm: /dev/tpmrm0                    # or swtpm:/path/to.sock for an emulated one
  buffer: {cap: 1GB}                  # bytes on disk; at the cap sources get no acknowledgement
  log: text                           # or json
  sources:                            # at least one
    - id: bed-7                       # part of every observation's key: never reuse or rename
      mllp: 127.0.0.1:2575            # listen address
      allow: []                       # peers' networks, such as [10.20.0.0/16]; needed unless mllp is loopback
      time_zone: UTC                  # of device times that carry none
      unique_ids: true                # false for a device that repeats message control ids (MSH-10)
`

type command func(ctx context.Context, args []string, stdout, stderr io.Writer) error

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program: exit code 0 done, 1 failed, 2 wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	commands := map[string]command{"run": runAgent, "identity": identity, "status": status, "buffer": bufferCheck, "version": version}
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	if args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		fmt.Fprint(stdout, usage)
		return 0
	}
	cmd, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "wardlink-agent: unknown command %q\n\n%s", args[0], usage)
		return 2
	}
	err := cmd(ctx, args[1:], stdout, stderr)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(stderr, "wardlink-agent: %v\n", err)
		return 2
	default:
		fmt.Fprintf(stderr, "wardlink-agent: %v\n", err)
		return 1
	}
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func version(_ context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flags("version", stderr)
	modules, asJSON := fs.Bool("modules", false, "list the linked modules"), fs.Bool("json", false, "print JSON")
	if err := parse(fs, args); err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, build.About("wardlink-agent", *modules))
	}
	build.Print(stdout, "wardlink-agent", *modules)
	return nil
}

func flags(name string, stderr io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("wardlink-agent "+name, flag.ContinueOnError)
	fs.SetOutput(stderr)
	return fs
}

func parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	if fs.NArg() > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", fs.Arg(0))}
	}
	return nil
}
