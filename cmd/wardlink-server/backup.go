package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"wardlink/server"
)

func makeBackup(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("backup", s)
	o := server.BackupOptions{}
	fs.StringVar(&o.Out, "out", "", "write to this new `FILE`, or into this directory under a name of its own (required)")
	fs.BoolVar(&o.Bare, "without-recovery", false, "leave recovery.json out; then restore must be given it")
	fs.DurationVar(&o.Wait, "wait", time.Minute, "how long the database may take to catch up with the journal, and then the log")
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	if o.Out == "" {
		return usageError{errors.New("--out is missing: a new file, or a directory, on another disk or machine")}
	}
	o.Dir = *dir
	var shown *line
	if !*asJSON {
		shown = newLine(s.err)
		o.Progress = func(stage string, bytes int64) {
			shown.show(stage, fmt.Sprintf("backup: %s, %s so far", stage, megabytes(bytes)))
		}
	}
	res, err := server.Backup(ctx, o)
	shown.end()
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(res)
	}
	fmt.Fprintf(s.out, "%s\n  %d files, %s, compressed and encrypted to this server's recovery file in %s\n  SHA-256 %s\n", res.File, res.Files, megabytes(res.Manifest.Bytes), megabytes(res.Bytes), res.SHA256)
	if res.Behind > 0 {
		fmt.Fprintf(s.out, "  The database was %d journal entries behind the log; what they hold comes again from the gateways, as long as these keep it.\n", res.Behind)
	}
	if res.LogBehind {
		fmt.Fprintf(s.out, "  The log's writer was held up: acts of the last moments are in the database and not yet in the log. 'wardlink status' says why.\n")
	}
	return nil
}

func restore(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("restore", s)
	o := server.RestoreOptions{}
	fs.StringVar(&o.From, "from", "", "the backup `FILE` (required)")
	fs.StringVar(&o.Recovery, "recovery-file", "", "`FILE` of the recovery file, where it was kept apart from the backup")
	fs.BoolVar(&o.Verify, "verify", false, "hash every leaf of the log again and check every page of the database")
	fs.Uint64Var(&o.Log, "log", 0, "`NUMBER` of the log that begins (default: one more than the backup's); give a greater one if a former restore used that")
	fs.StringVar(&o.Operator, "operator", "operator", "`NAME` of the operator who gets a file")
	passFile := fs.String("passphrase-file", "", "read the recovery passphrase from `FILE` (default: standard input)")
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	if o.From == "" {
		return usageError{errors.New("--from is missing: the backup's file")}
	}
	o.Dir = *dir
	var err error
	if o.Passphrase, err = readPassphrase(*passFile, s); err != nil {
		return err
	}
	if !*asJSON {
		o.Progress = func(stage string) { fmt.Fprintf(s.err, "restore: %s\n", stage) }
	}
	res, err := server.Restore(ctx, o)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(res)
	}
	fmt.Fprintf(s.out, "%s is restored from the backup of %s.\n\n", res.Dir, res.Backup.Format(time.RFC3339))
	fmt.Fprintf(s.out, "  former log  %s, %d leaves, %s\n  new log     %s, whose first leaf names the former one's checkpoint\n", res.Former, res.Leaves, checked(res.Verified), res.Log)
	fmt.Fprintf(s.out, "  gateways    keep their certificates; each is asked for what it delivered since, as it connects\n")
	fmt.Fprintf(s.out, "\nNext:\n  wardlink-server run --dir %s\n  wardlink audit verify --dir %s        # once it runs\n", res.Dir, res.Dir)
	return nil
}

func checked(verified bool) string {
	if verified {
		return "every leaf verified"
	}
	return "its checkpoint verified; 'wardlink audit verify' verifies every leaf"
}

// confirmRecovery is 'init --confirm-recovery', on a server that is there.
func confirmRecovery(ctx context.Context, dir, passFile string, asJSON bool, s streams) error {
	passphrase, err := readPassphrase(passFile, s)
	if err != nil {
		return err
	}
	if err := server.ConfirmRecovery(ctx, dir, passphrase); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(s.out).Encode(map[string]bool{"confirmed": true})
	}
	fmt.Fprintln(s.out, "confirmed: the recovery file opens, and its keys are those that gateways seal to and kits trust; 'run' asks for it no more")
	return nil
}

func megabytes(n int64) string { return fmt.Sprintf("%.2f MB", float64(n)/1e6) }

// line is one line of a terminal that is written again and again; elsewhere it is a line for each stage.
type line struct {
	out      io.Writer
	terminal bool
	stage    string
	at       time.Time
}

func newLine(out io.Writer) *line {
	l := &line{out: out}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		l.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return l
}

func (l *line) show(stage, text string) {
	news := stage != l.stage
	if !news && (!l.terminal || time.Since(l.at) < 200*time.Millisecond) {
		return
	}
	l.stage, l.at = stage, time.Now()
	if l.terminal {
		fmt.Fprintf(l.out, "\r\x1b[K%s", text)
		return
	}
	fmt.Fprintln(l.out, text)
}

func (l *line) end() {
	if l != nil && l.terminal && l.stage != "" {
		fmt.Fprint(l.out, "\r\x1b[K")
	}
}
