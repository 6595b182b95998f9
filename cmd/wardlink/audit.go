package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/internal/durable"
	"wardlink/server/api/client"
	"wardlink/telemetry"
)

func (t *tool) audit() *cobra.Command {
	return group("audit", "List, verify and prove what happened", t.auditList(), t.auditVerify(), t.auditProve(), t.auditCheck())
}

// logFiles finds the log and its public key in a server's directory.
func logFiles(dir, keyFile string) (log, vkey string, err error) {
	if keyFile == "" {
		keyFile = filepath.Join(dir, "public", "log.pub")
	}
	data, err := os.ReadFile(keyFile)
	if err != nil {
		return "", "", fmt.Errorf("public key: %w; name the file with --key", err)
	}
	vkey = strings.TrimSpace(string(data))
	if _, err := note.NewVerifier(vkey); err != nil {
		return "", "", fmt.Errorf("%s is no log key (%w); expected a file like DIR/public/log.pub", keyFile, err)
	}
	return logFolder(dir), vkey, nil
}

// logFolder is the log in a server's directory, or the directory itself where a copy of the log was named.
func logFolder(dir string) string {
	if _, err := os.Stat(filepath.Join(dir, "checkpoint")); err == nil {
		return dir
	}
	return filepath.Join(dir, "log")
}

func (t *tool) auditVerify() *cobra.Command {
	var dir, key string
	var older []string
	c := &cobra.Command{
		Use: "verify --dir DIR", Short: "Verify the whole log offline, with its public key only", Args: none("--dir"),
		Long: "Hashes every leaf and every row again and holds them against the signed checkpoint; so with the logs that restores\n" +
			"ended, and that each begins where the one before ended. Needs no server and no\n" +
			"network. Exits 1 on any doubt. A whole log that was put back to a former state verifies by itself: keep checkpoints\n" +
			"elsewhere and give them with --older, also those of a log that a restore ended.",
		Example: `  wardlink audit verify --dir /srv/wardlink
  wardlink audit verify --dir ./copy-of-log --key log.pub --older checkpoint-of-may`,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				return errors.New("--dir is missing: the server's directory, or a copy of its log")
			}
			log, vkey, err := logFiles(dir, key)
			if err != nil {
				return err
			}
			logs, err := audit.FormerLogs(dir)
			if err != nil {
				return err
			}
			kept, err := readOlder(older, logs)
			if err != nil {
				return err
			}
			r, err := audit.VerifyWith(log, vkey, audit.Options{Older: kept[""]})
			former, ferr := verifyFormer(logs, log, vkey, kept)
			err = errors.Join(err, ferr)
			if t.json {
				out := verified(r, err)
				out.Former = former
				if jerr := t.printJSON(out); jerr != nil {
					return jerr
				}
				if err != nil {
					return errSaid
				}
				return nil
			}
			if err != nil {
				return err
			}
			return t.table(func(w io.Writer) {
				fmt.Fprintf(w, "verified\t%s\nleaves\t%d (%d events, %d windows)\npublishes\t%d\nroot\t%s\nlatest\t%s\n",
					r.Origin, r.Leaves, r.Events, r.Windows, r.Rows, r.Root, time.UnixMilli(r.Latest).UTC().Format(time.RFC3339))
				for _, f := range former {
					fmt.Fprintf(w, "before it\t%s, %d leaves (%d events, %d windows), %d publishes; the next log's first leaf, of %s, names its checkpoint: %s\n",
						f.Origin, f.Leaves, f.Events, f.Windows, f.Rows, time.UnixMilli(f.Ended.Time).UTC().Format(time.RFC3339), f.Ended.Reason)
				}
				if r.Unpublished > 0 {
					fmt.Fprintf(w, "not signed yet\t%d leaves (%d events, %d windows over %d publishes); they prove nothing\n",
						r.Unpublished, r.UnpublishedEvents, r.UnpublishedWindows, r.UnpublishedRows)
				}
			})
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "the server's `DIR`, or a copy of its log (required)")
	c.Flags().StringVar(&key, "key", "", "`FILE` of the log's public key (default: DIR/public/log.pub)")
	c.Flags().StringArrayVar(&older, "older", nil, "`FILE` of a checkpoint kept elsewhere that this log, or the former one that it is of, must contain")
	return c
}

// verifyReport is the JSON form. All counts but unpublished are of what the checkpoint covers.
type verifyReport struct {
	Verified    bool     `json:"verified"`
	Origin      string   `json:"origin"`
	Size        uint64   `json:"size"` // leaves that the checkpoint says it covers
	Leaves      uint64   `json:"leaves"`
	Events      uint64   `json:"events"`
	Windows     uint64   `json:"windows"`
	Rows        uint64   `json:"rows"`
	Root        string   `json:"root"`
	Latest      int64    `json:"latest_ms"`
	Unpublished uint64   `json:"unpublished"` // leaves not signed yet
	Findings    []string `json:"findings"`

	Former []verifyReport `json:"former,omitempty"` // logs that restores ended, oldest first
	Ended  *succeeded     `json:"ended,omitempty"`  // of a former one that its successor follows without doubt
}

// succeeded is what the first leaf of a log says of how the one before it ended.
type succeeded struct {
	Time   int64  `json:"time_ms"`
	Reason string `json:"reason"`
}

// readOlder reads checkpoints that were kept elsewhere, by the key of the former log whose origin they name; under "" are all others.
func readOlder(files []string, former []audit.Former) (map[string][][]byte, error) {
	kept := map[string][][]byte{}
	for _, path := range files {
		signed, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("older checkpoint: %w", err)
		}
		of := ""
		if cp, err := audit.UnverifiedCheckpoint(signed); err == nil { // which log it is held against; that verifies it
			for _, f := range former {
				if origin, _, _ := strings.Cut(f.Key, "+"); origin == cp.Origin {
					of = f.Key
				}
			}
		}
		kept[of] = append(kept[of], signed)
	}
	return kept, nil
}

// verifyFormer verifies the logs that restores ended, with checkpoints that were kept of them, and that each begins where the one before ended.
func verifyFormer(logs []audit.Former, log, vkey string, kept map[string][][]byte) (out []verifyReport, err error) {
	var errs []error
	for i, f := range logs {
		r, err := audit.VerifyWith(f.Dir, f.Key, audit.Options{Older: kept[f.Key]})
		report := verified(r, err)
		next, key := log, vkey
		if i+1 < len(logs) {
			next, key = logs[i+1].Dir, logs[i+1].Key
		}
		begun, serr := audit.CheckSuccession(next, key, f)
		switch {
		case err == nil && serr == nil:
			report.Ended = &succeeded{Time: begun.Time, Reason: begun.Reason}
		case err == nil:
			err = serr
		case serr == nil && len(kept[f.Key]) > 0:
			err = fmt.Errorf("%w\n  %s ended with %d leaves, as its successor's first leaf says, of %s (%s): leaves that a checkpoint kept elsewhere has beyond that are lost",
				err, r.Origin, r.Size, time.UnixMilli(begun.Time).UTC().Format(time.RFC3339), begun.Reason)
		}
		out, errs = append(out, report), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func verified(r audit.Report, err error) verifyReport {
	out := verifyReport{
		Verified: err == nil, Origin: r.Origin, Size: r.Size, Leaves: r.Leaves, Events: r.Events, Windows: r.Windows, Rows: r.Rows,
		Root: r.Root.String(), Latest: r.Latest, Unpublished: r.Unpublished, Findings: []string{},
	}
	var doubt *audit.DoubtError
	switch {
	case errors.As(err, &doubt):
		out.Findings = doubt.Findings
	case err != nil:
		out.Findings = []string{err.Error()}
	}
	return out
}

func (t *tool) auditProve() *cobra.Command {
	var dir, key, gateway, lane, epoch, out string
	var number int64
	c := &cobra.Command{
		Use: "prove --gateway G --lane L --number N", Short: "Write a bundle that proves one publish to anyone", Args: none("--gateway"),
		Long: "Writes a file that holds the access row, its place in the log and the signed checkpoint. 'audit check' verifies it\n" +
			"offline. Batch numbers count from 0 at each start of an agent: give --epoch when several starts match.",
		Example: `  wardlink audit prove --gateway icu-3-bed-7 --lane vitals --number 12 --out proof.json
  wardlink audit check --key log.pub proof.json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if gateway == "" || number < 0 {
				return errors.New("--gateway and --number are needed: whose publish, and which (from 0)")
			}
			l, err := telemetry.ParseLane(lane)
			if err != nil {
				return err
			}
			q := audit.Query{Gateway: gateway, Lane: uint8(l), Number: uint64(number)}
			if epoch != "" {
				e, err := telemetry.ParseEpoch(epoch)
				if err != nil {
					return err
				}
				q.Epoch = (*[16]byte)(&e)
			}
			data, err := t.prove(cmd.Context(), dir, key, q, url.Values{
				"gateway": {gateway}, "lane": {lane}, "number": {strconv.FormatInt(number, 10)}, "epoch": {epoch},
			})
			if err != nil {
				return err
			}
			if out == "" || out == "-" {
				_, err = t.out.Write(data)
				return err
			}
			if err := durable.WriteFile(out, data, 0o644); err != nil {
				return err
			}
			fmt.Fprintf(t.err, "%s: check it with 'wardlink audit check --key log.pub %s'\n", out, out)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "read the log in the server's `DIR` instead of asking the server")
	f.StringVar(&key, "key", "", "`FILE` of the log's public key (default: DIR/public/log.pub)")
	f.StringVar(&gateway, "gateway", "", "the `GATEWAY` (required)")
	f.StringVar(&lane, "lane", "vitals", "`LANE`: alarm, vitals, waveform or self")
	f.Int64Var(&number, "number", -1, "batch `NUMBER` (required)")
	f.StringVar(&epoch, "epoch", "", "the agent's start, `HEX` (32 digits)")
	f.StringVar(&out, "out", "", "write to `FILE` instead of standard output")
	return c
}

func (t *tool) prove(ctx context.Context, dir, key string, q audit.Query, query url.Values) ([]byte, error) {
	if dir != "" {
		log, vkey, err := logFiles(dir, key)
		if err != nil {
			return nil, err
		}
		b, err := audit.Prove(log, vkey, q)
		if err != nil {
			return nil, err
		}
		return b.Encode()
	}
	c, err := t.client()
	if err != nil {
		return nil, err
	}
	body, err := c.Stream(ctx, "GET", "/v1/audit/proof", query, "", nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func (t *tool) auditCheck() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use: "check --key FILE BUNDLE", Short: "Check a proof bundle offline", Args: exactly("BUNDLE file"),
		Example: "  wardlink audit check --key log.pub proof.json",
		RunE: func(_ *cobra.Command, args []string) error {
			if key == "" {
				return errors.New("--key is missing: the file of the log's public key, as DIR/public/log.pub of the server")
			}
			_, vkey, err := logFiles("", key)
			if err != nil {
				return err
			}
			data, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("bundle: %w", err)
			}
			v, err := audit.CheckBundle(data, vkey)
			if err != nil {
				return t.unproven(fmt.Errorf("%s proves nothing: %w", args[0], err))
			}
			item := client.ShowItem(audit.Item{Index: v.Index, Event: v.Event, Row: v.Row})
			ended, err := checkEnd(v.Event)
			if err != nil {
				return t.unproven(fmt.Errorf("%s proves that the server logged it, and it contradicts itself: %w", args[0], err))
			}
			if t.json {
				out := map[string]any{"proven": item, "origin": v.Origin, "log_size": v.Size, "additions": additions(v)}
				if ended != nil {
					out["end"] = ended
				}
				return t.printJSON(out)
			}
			return t.table(func(w io.Writer) {
				fmt.Fprintf(w, "proven\t%s by %s at %s\n", item.Type, item.Actor, item.Time.Format(time.RFC3339Nano))
				fmt.Fprintf(w, "target\t%s\n", item.Target)
				if item.Frame != "" {
					fmt.Fprintf(w, "frame SHA-256\t%s\n", item.Frame)
				}
				ended.print(w)
				for _, text := range additions(v) {
					fmt.Fprintf(w, "also\t%q\n", text)
				}
				fmt.Fprintf(w, "log\t%s, leaf %d of %d\n", v.Origin, v.Index, v.Size)
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "`FILE` of the log's public key (required)")
	return c
}

// unproven ends a check that failed, in JSON by a document too.
func (t *tool) unproven(err error) error {
	if !t.json {
		return err
	}
	if jerr := t.printJSON(map[string]any{"proven": nil, "error": err.Error()}); jerr != nil {
		return errors.Join(err, jerr)
	}
	return errSaid
}

// additions shows what a newer server added to leaf and row: proven like the rest, though this program does not know what it means.
func additions(v audit.Verdict) []string {
	all := []string{}
	if v.Event != nil && v.Event.Extra != "" {
		all = append(all, v.Event.Extra.String())
	}
	if v.Window != nil && v.Window.Extra != "" {
		all = append(all, v.Window.Extra.String())
	}
	if v.Row != nil && v.Row.Extra != "" {
		all = append(all, v.Row.Extra.String())
	}
	return all
}
