// Command wardlink-agent is the gateway's daemon.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"wardlink/internal/build"
	"wardlink/internal/nearest"
)

const usage = `wardlink-agent carries telemetry from bedside devices to the hospital, sealed, by way of this gateway's TPM.

Usage:
  wardlink-agent run          --config FILE             serve until SIGTERM
  wardlink-agent status       --config FILE [--watch]   how the running agent is: what needs attention first (--json)
  wardlink-agent doctor       --config FILE [--odd]     look for what keeps telemetry from the hospital, and name its mend (--json)
  wardlink-agent doctor       --config FILE --watch     step by step until the hospital has seen this gateway (--json)
  wardlink-agent kit          --config FILE             show the kit that this gateway follows; 'kit adopt FILE' follows another (--json)
  wardlink-agent clock        --config FILE             show what the agent knows of the time (--json); 'clock reset --token TOKEN' sets
                                                        a floor back that a clock of the hospital's once raised too far
  wardlink-agent config check [FILE]                    is it good? What 'systemctl reload wardlink-agent' (SIGHUP) would take (--json)
  wardlink-agent identity     --config FILE             show the TPM's endorsement key hash and fingerprint (--json)
  wardlink-agent hl7 try FILE                           show what a device's messages become, field by field (--json)
  wardlink-agent line try FILE                          the same of JSON lines and CBOR, as a line socket takes them (--json)
  wardlink-agent buffer check --config FILE             check the buffer's files, agent stopped (--json)
  wardlink-agent buffer bench --dir DIR [--seconds N]   how fast a disk keeps telemetry, and how much is written for it (--json)
  wardlink-agent version      [--modules]               (--json)

Examples:
  wardlink-agent status --watch                         a page that is drawn anew every second; Ctrl-C ends it
  wardlink-agent doctor --odd                           only what is not well
  wardlink-agent doctor --watch                         at the installation: ends, with 0, once the hospital has seen the first heartbeat
  wardlink-agent hl7 try monitor.hl7                    MLLP frames or plain messages, lines ending in CR, LF or both
  wardlink-agent hl7 try - --odd --source-time-zone Europe/Berlin < capture.mllp
  wardlink-agent buffer bench --dir /var/lib --size 400 what does this SD card do with single messages?

Exit codes: 0 done, 1 failed, 2 wrong usage. Three commands answer with theirs, and with 1 when they are used wrongly:
  doctor    0 all is well (--watch: the hospital has seen this gateway), 1 something stops telemetry now or nothing could be looked at, 2 something will unless somebody acts
  hl7 try, line try
            0 all was understood, 1 a message or the file is not readable, 2 something of a message was not understood

doctor, hl7 try and line try change nothing and send no telemetry; the latter two need no configuration. NO_COLOR is respected.

Without --config the configuration is the first agent.yaml in /boot/firmware/wardlink, /boot/wardlink, /boot/efi/wardlink, /efi/wardlink or
/etc/wardlink; without any, the built-in defaults: one source 'bedside' on port 2575 for devices of private networks. All keys, with their
defaults:

  kit: ""                             # what 'wardlink provision kit' made; default: kit.json in /etc/wardlink, then on the boot partition as
                                      # above. The first start copies it into state; once enrolled only the copy counts (see 'kit adopt')
  state: /var/lib/wardlink-agent      # identity and buffer
  tpm: /dev/tpmrm0                    # or swtpm:/path/to.sock for an emulated one
  buffer: {cap: 1GB}                  # bytes on disk; at the cap the oldest goes, waveforms first
  proxy: {url: "", credentials: ""}   # such as http://proxy:3128, and a file of mode 0600 with user:password; none: directly
  log: text                           # or json
  metrics: {socket: "", group: ""}    # such as /run/wardlink-agent/metrics.sock, for a scraper of that group: GET /metrics, Prometheus text
  event_log: /sys/kernel/security/tpm0/binary_bios_measurements  # what the firmware measured; sent where it is there
  console: /run/wardlink-agent/issue  # the fingerprint for the box's console, as /etc/issue has it; where that directory exists
  report_every: 60s                   # how often the hospital hears how the gateway is, 1s to 1h; about 0.5 KB each
  sources:                            # at least one
    - id: bed-7                       # part of every observation's key: never reuse or rename
      mllp: 127.0.0.1:2575            # listen address
      allow: []                       # peers' networks, such as [10.20.0.0/16]; needed unless mllp is loopback
      time_zone: UTC                  # of device times that carry none
      unique_ids: true                # false for a device that repeats message control ids (MSH-10)
      bindings: []                    # devices to beds, such as [{address: 10.20.0.7, bed: ICU-7, id: icu-7}]; a device is told by one of
                                      # certificate (a name in it), address, msh3 (sending application), device (OBX-18). The first two
                                      # hold against what a message claims. id, not with device: a source id of its own, with own health
      limits: {connections: 200}      # and messages, burst, bytes (1MB) a second: beyond them devices are read later, nothing is dropped;
                                      # per_address: connections of one address, by default three quarters of connections
      # tls:                          # devices speak TLS 1.2 or 1.3, and nothing else; files are read anew when they change:
      #   certificate: /etc/wardlink/devices.pem   # what devices see, PEM
      #   key: /etc/wardlink/devices.key           # mode 0600, the agent's user its owner
      #   client_ca: /etc/wardlink/devices-ca.pem  # devices must show a certificate of it; without the key they show none
      #   allow: []                                # names, one of which it must have; empty: any of that CA
    - id: pumps                       # a source of JSON lines or CBOR: telemetry/line/LINE.md
      socket: /run/wardlink-agent/vitals.sock # path of a Unix socket; its directory exists, and is the agent's
      mode: "0660"                    # of the socket
      group: ""                       # that it is given to, a name or a number; the agent's user is a member
      users: []                       # who may send, names or numbers, and
      groups: []                      # primary groups; both empty: whoever can open the socket
      bindings: []                    # of what devices call themselves to beds, such as [{device: pump-3, bed: ICU-7}]
                                      # time_zone and limits, but for per_address, as above
`

type command func(ctx context.Context, args []string, stdout, stderr io.Writer) error

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program: exit code 0 done, 1 failed, 2 wrong usage; a command whose code is its verdict returns one.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	commands := map[string]command{"run": runAgent, "identity": identity, "status": status, "clock": clock, "buffer": bufferCommand, "version": version,
		"hl7": hl7Try(stdin), "line": lineTry(stdin), "doctor": runDoctor, "kit": kit, "config": configCommand}
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	switch {
	case args[0] == "help" && len(args) > 1:
		args = append(slices.Clone(args[1:]), "--help")
	case args[0] == "help" || isHelp(args[0]):
		fmt.Fprint(stdout, usage)
		return 0
	case args[0] == "--version":
		args = append([]string{"version"}, args[1:]...)
	}
	cmd, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "wardlink-agent: unknown command %q%s ('wardlink-agent help' lists all)\n", args[0], nearest.Hint(args[0], slices.Collect(maps.Keys(commands))))
		return 2
	}
	err := cmd(ctx, args[1:], stdout, stderr)
	var v verdict
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &v):
		if v.error != nil {
			fmt.Fprintf(stderr, "wardlink-agent: %v\n", v.error)
		}
		return v.code
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

// verdict ends the program with a code that says what a command found. Its error, if any, is printed.
type verdict struct {
	code int
	error
}

func (v verdict) Error() string {
	if v.error == nil {
		return ""
	}
	return v.error.Error()
}

// asVerdict keeps a mistake in the command line from looking like a finding: there it is 1, like everything that could not be done.
func asVerdict(err error) error {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return err
	}
	return verdict{1, err}
}

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
	_, err := parseWith(fs, args, 0)
	return err
}

// parseWith takes flags before and after at most the given number of arguments.
func parseWith(fs *flag.FlagSet, args []string, most int) (rest []string, err error) {
	for {
		if err := quietly(fs, args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				help(fs)
				return nil, err
			}
			return nil, usageError{fmt.Errorf("%w; see '%s --help'", err, fs.Name())}
		}
		if fs.NArg() == 0 {
			return rest, nil
		}
		if len(rest) == most {
			return nil, usageError{fmt.Errorf("unexpected argument %q", fs.Arg(0))}
		}
		rest, args = append(rest, fs.Arg(0)), fs.Args()[1:]
	}
}
