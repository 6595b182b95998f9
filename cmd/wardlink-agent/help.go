package main

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// helps has of each command, by the name of its flags: how it is called, what it does, examples.
var helps = map[string]string{
	"wardlink-agent run": `
wardlink-agent run [--config FILE]

Serves until SIGTERM: takes messages of devices, keeps them sealed, sends them to the hospital. SIGHUP has it read its configuration again.

  wardlink-agent run --config /etc/wardlink/agent.yaml
`,
	"wardlink-agent status": `
wardlink-agent status [--config FILE] [--watch] [--json]

Asks the running agent how it is, and says first what needs attention.

  wardlink-agent status
  wardlink-agent status --watch                  # drawn anew every second; Ctrl-C ends it
`,
	"wardlink-agent doctor": `
wardlink-agent doctor [--config FILE] [--odd | --watch] [--json]

Looks for what keeps telemetry from the hospital, from the configuration to the server's answer, and names the mend of each thing. It changes
nothing. Exit code: 0 all is well, 1 something stops telemetry now, 2 something will unless somebody acts.

  wardlink-agent doctor --odd                    # only what is not well
  wardlink-agent doctor --watch                  # at the installation: ends with 0 once the hospital has seen this gateway
`,
	"wardlink-agent kit": `
wardlink-agent kit [--config FILE] [--json]
       wardlink-agent kit adopt FILE [--config FILE] [--json]

Shows the kit that this gateway follows, which decides whom it trusts; 'adopt' has it follow another, from the agent's next start on.

  wardlink-agent kit
  wardlink-agent kit adopt /boot/firmware/wardlink/kit.json
`,
	"wardlink-agent clock": `
wardlink-agent clock [--config FILE] [--json]
       wardlink-agent clock reset --token TOKEN

Shows what the running agent knows of the time, and the challenge of which 'wardlink clock token' makes a token; 'reset' sets a floor back by it.

  wardlink-agent clock
`,
	"wardlink-agent config check": `
wardlink-agent config check [FILE] [--json]

Says whether the agent would start with a configuration, and take it at a reload, or what to mend. It changes nothing.

  wardlink-agent config check
  wardlink-agent config check ./agent.yaml
`,
	"wardlink-agent identity": `
wardlink-agent identity [--config FILE] [--json]

Shows the TPM's endorsement key hash and fingerprint, by which an operator admits this gateway. The agent does not run meanwhile.

  wardlink-agent identity --json
`,
	"wardlink-agent hl7 try": `
wardlink-agent hl7 try FILE [--odd] [--source-time-zone ZONE] [--json]

Shows what a device's messages become, field by field. FILE holds MLLP frames or plain messages; - is standard input. Nothing is sent.

  wardlink-agent hl7 try monitor.hl7
  wardlink-agent hl7 try - --odd --source-time-zone Europe/Berlin < capture.mllp
`,
	"wardlink-agent line try": `
wardlink-agent line try FILE [--odd] [--source-time-zone ZONE] [--json]

Shows what JSON lines or CBOR become, as a line socket takes them. Nothing is sent.

  wardlink-agent line try pump.json
`,
	"wardlink-agent buffer check": `
wardlink-agent buffer check [--config FILE] [--json]

Reads all files of the buffer and says what is damaged. The agent does not run meanwhile.

  wardlink-agent buffer check
`,
	"wardlink-agent buffer bench": `
wardlink-agent buffer bench --dir DIR [--seconds N | --count N] [--size BYTES] [--json]

Says how fast a disk keeps telemetry, and how much is written for it. It makes a folder in DIR, and removes it.

  wardlink-agent buffer bench --dir /var/lib
  wardlink-agent buffer bench --dir /var/lib --size 400   # one monitor's single messages
`,
	"wardlink-agent version": `
wardlink-agent version [--modules] [--json]

  wardlink-agent version --modules
`,
}

// help says what a command does and how it is called, and then its flags.
func help(fs *flag.FlagSet) {
	fmt.Fprintf(fs.Output(), "Usage: %s\n\n", strings.TrimSpace(helps[fs.Name()]))
	fs.PrintDefaults()
}

func isHelp(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

// quietly parses without a word: a mistake is said once, at the end, and not buried below all flags.
func quietly(fs *flag.FlagSet, args []string) error {
	out := fs.Output()
	fs.SetOutput(io.Discard)
	defer fs.SetOutput(out)
	return fs.Parse(args)
}
