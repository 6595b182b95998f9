package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"wardlink/server"
)

func restored(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("restored", s)
	o := server.RestoredOptions{}
	fs.Uint64Var(&o.Log, "log", 0, "`NUMBER` of the log that begins (default: the next one); give a greater one if a former restore of the same backup used that")
	fs.BoolVar(&o.Apart, "apart", false, "go on although log and database are of two moments; --dry-run says what that costs")
	fs.BoolVar(&o.DryRun, "dry-run", false, "say what would be done, and change nothing")
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	o.Dir = *dir
	if !*asJSON {
		o.Progress = func(stage string) { fmt.Fprintf(s.err, "restored: %s\n", stage) }
	}
	res, err := server.Restored(ctx, o)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(res)
	}
	if res.Before {
		fmt.Fprintf(s.out, "Log %s has begun behind %s, and holds nothing else yet: there is nothing to do.\n", res.Log, res.Former)
	} else {
		tellRestored(s.out, res)
	}
	if res.Apart != "" && !res.Done {
		return fmt.Errorf("log and database are of two moments: %s\nPut back halves of one moment; where they are lost, 'restored --apart' goes on with these", res.Apart)
	}
	return nil
}

// tellRestored says what was done, or would be, and what is left to people.
func tellRestored(w io.Writer, res server.RestoredResult) {
	verb := "is"
	if !res.Done {
		verb = "would be"
	}
	latest := res.Latest.Format(time.RFC3339)
	fmt.Fprintf(w, "  former log  %s %s ended, %d leaves, its last act of %s\n", res.Former, verb, res.Leaves, latest)
	fmt.Fprintf(w, "  new log     %s %s begun behind journal entry %d; its first leaf names the former one's checkpoint\n", res.Log, verb, res.Journal)
	if n := res.Again(); n > 0 {
		fmt.Fprintf(w, "  log behind  what it lost it takes anew from the database: %d journal entries, up to %d\n", n, res.Cursor)
	}
	if res.Ahead() {
		fmt.Fprintf(w, "  log ahead   it holds acts up to entry %d of the journal that was lost; the database knows nothing of those behind %d\n", res.FormerJournal, res.Journal)
	}
	fmt.Fprintf(w, "  gateways    each %s asked, as it connects in the next thirty days, for what it delivered and the database lacks\n", verb)
	if !res.Done {
		return
	}
	since := latest
	if res.Again() > 0 {
		since = "the database's last moment"
	} else if res.Ahead() {
		since = "the moment to which the database went back"
	}
	fmt.Fprintf(w, `
Next:
  wardlink-server run --dir %[1]s          # and its nodes; those that were added since the backup have no login any more: add them anew
  Do again what operators did since %[2]s, revocations and suspensions first: until then who was cut off since is let in.
  wardlink audit verify --dir %[1]s
  Make a new backup, and keep a copy of %[1]s/log/checkpoint elsewhere.
  A standby with a directory of its own needs this one's keys/log/log.key and public/log.pub.
`, res.Dir, since)
}

func resend(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("resend", s)
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	generation, err := server.AskAgain(ctx, *dir)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(map[string]string{"generation": generation})
	}
	fmt.Fprintln(s.out, "asked: for thirty days each gateway sends, as it connects, what it delivered, still holds, and this database lacks; 'wardlink account' shows what stays missing")
	return nil
}
