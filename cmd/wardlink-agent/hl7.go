package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"wardlink/agent/trial"
)

// maxTrial bounds a file of messages: a day of a busy ward fits, a disk image does not.
const maxTrial = 64 << 20

// hl7Try shows what the messages of a file become. It ends with 0 when everything was understood, 1 when a message, or the file, is not
// readable, and 2 when something of a message was not understood.
func hl7Try(stdin io.Reader) command {
	return tryCommand("hl7", "HL7", stdin, func(data []byte, zone *time.Location) (trial.Report, error) {
		return trial.Read(data, zone, time.Now())
	})
}

// lineTry is hl7Try for what devices send to a line socket.
func lineTry(stdin io.Reader) command {
	return tryCommand("line", "JSON or CBOR", stdin, trial.ReadLines)
}

func tryCommand(name, what string, stdin io.Reader, read func([]byte, *time.Location) (trial.Report, error)) command {
	return func(_ context.Context, args []string, stdout, stderr io.Writer) error {
		if len(args) > 0 && isHelp(args[0]) {
			args = []string{"try", "--help"}
		}
		if len(args) == 0 || args[0] != "try" {
			return verdict{1, fmt.Errorf("expected '%s try FILE'", name)}
		}
		fs := flags(name+" try", stderr)
		zoneName := fs.String("source-time-zone", "UTC", "`ZONE` of device times that name none, as in a source's time_zone")
		asJSON, odd := fs.Bool("json", false, "print JSON"), fs.Bool("odd", false, "show only messages that were not wholly understood")
		files, err := parseWith(fs, args[1:], 1)
		if err != nil {
			return asVerdict(err)
		}
		if len(files) == 0 {
			return verdict{1, fmt.Errorf("%s try: name a file of %s messages, or - for standard input", name, what)}
		}
		zone, err := time.LoadLocation(*zoneName)
		if err != nil {
			return verdict{1, fmt.Errorf("--source-time-zone %q is not in this machine's time zone database; expected a name such as Europe/Berlin", *zoneName)}
		}
		data, err := readTrial(files[0], stdin)
		if err != nil {
			return verdict{1, err}
		}
		report, err := read(data, zone)
		if err != nil {
			return verdict{1, fmt.Errorf("%s: %w", files[0], err)}
		}
		if *asJSON {
			err = printJSON(stdout, report)
		} else {
			err = report.Print(stdout, *odd)
		}
		switch {
		case err != nil:
			return verdict{1, err}
		case report.Refused > 0:
			return verdict{1, nil}
		case report.InPart > 0:
			return verdict{2, nil}
		}
		return nil
	}
}

func readTrial(name string, stdin io.Reader) ([]byte, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxTrial+1))
	if err == nil && len(data) > maxTrial {
		err = fmt.Errorf("%s: more than %d MB; cut it into parts", name, maxTrial>>20)
	}
	return data, err
}
