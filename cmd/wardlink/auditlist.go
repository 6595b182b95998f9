package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardlink/audit"
	"wardlink/server/api/client"
)

func (t *tool) auditList() *cobra.Command {
	var dir string
	var f audit.Filter
	var kind, outcome, since, until string
	c := &cobra.Command{
		Use: "list", Short: "List what happened", Args: none("--gateway"),
		Long: "Lists what the log holds, the newest first. With --json it is one JSON document a line (ndjson), and nothing where nothing matches.",
		Example: `  wardlink audit list --limit 20
  wardlink audit list --gateway icu-3-bed-7 --publishes
  wardlink audit list --outcome denied --since 24h
  wardlink audit list --reason revoked --gateway icu-3-bed-7
  wardlink audit list --type refused --dir /srv/wardlink`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Limit < 1 {
				return fmt.Errorf("--limit: %d; expected a number from 1", f.Limit)
			}
			f.Type, f.Newest, f.Outcome = audit.Type(kind), true, audit.Outcome(outcome)
			err := knownType(f.Type)
			if err != nil {
				return err
			}
			if f.From, err = moment("--since", since, time.Now()); err != nil {
				return err
			}
			if f.To, err = moment("--until", until, time.Now()); err != nil {
				return err
			}
			if _, err := client.ParseFilter(client.Query(f)); err != nil {
				return fmt.Errorf("--%w", err)
			}
			items := localItems(dir, f)
			if dir == "" {
				items = t.remoteItems(cmd.Context(), f)
			}
			if t.json {
				enc := json.NewEncoder(t.out)
				for it, err := range items {
					if err != nil {
						return err
					}
					if err := enc.Encode(it); err != nil {
						return err
					}
				}
				return nil
			}
			var failed error
			empty := true
			err = t.table(func(w io.Writer) {
				for it, err := range items {
					if failed = err; err != nil {
						return
					}
					if empty {
						fmt.Fprintln(w, "LEAF\tTIME (UTC)\tTYPE\tACTOR\tTARGET\tOUTCOME\tCOUNT\tREASON")
					}
					empty = false
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", it.Leaf, it.Time.Format(time.DateTime), it.Type,
						who(it), it.Target, it.Outcome, blankZero(it.Count), it.Reason)
				}
			})
			if empty && failed == nil && err == nil {
				fmt.Fprintln(t.err, "nothing in the log matches; audit/FORMAT.md lists the types of events")
			}
			return errors.Join(failed, err)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "read the log in the server's `DIR` instead of asking the server")
	c.Flags().StringVar(&kind, "type", "", "only events of this `TYPE`, such as session.opened, or window")
	c.Flags().StringVar(&f.Actor, "actor", "", "only acts of this `SPIFFE-ID`")
	c.Flags().StringVar(&f.Gateway, "gateway", "", "only what this `GATEWAY` did or what was done to it")
	c.Flags().StringVar(&outcome, "outcome", "", "only acts that ended so: success, denied or failed (`OUTCOME`)")
	c.Flags().StringVar(&f.Reason, "reason", "", "only acts whose reason contains `TEXT`")
	c.Flags().StringVar(&since, "since", "", "only what happened from `TIME` on: 2026-05-04T03:02:01Z, 2026-05-04, or 24h for a day ago")
	c.Flags().StringVar(&until, "until", "", "only what happened before `TIME`")
	c.Flags().IntVar(&f.Limit, "limit", 100, "at most `N` lines, the newest")
	c.Flags().BoolVar(&f.Publishes, "publishes", false, "list each publish instead of the windows")
	return c
}

// knownType refuses a type of which no event can be; "" is every type.
func knownType(kind audit.Type) error {
	types := append(audit.Types(), "window")
	if kind == "" || slices.Contains(types, kind) {
		return nil
	}
	slices.Sort(types)
	return fmt.Errorf("--type: %.40q is no type of event; expected one of %s", kind, strings.Trim(fmt.Sprint(types), "[]"))
}

// moment reads a time as Unix milliseconds, 0 for none: RFC 3339, a local date, or how long before now.
func moment(flag, text string, now time.Time) (int64, error) {
	if text == "" {
		return 0, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago).UnixMilli(), nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at.UnixMilli(), nil
	}
	if at, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil {
		return at.UnixMilli(), nil
	}
	return 0, fmt.Errorf("%s: %.40q; expected a time such as 2026-05-04T03:02:01Z, a date such as 2026-05-04, or 24h for a day ago", flag, text)
}

// who did it; of those who have proven nothing, from where.
func who(it client.AuditItem) string {
	if it.Actor == "peer" && it.Peer != "" {
		return "peer " + it.Peer
	}
	return shortActor(it.Actor)
}

// shortActor leaves out the trust domain, which is everybody's.
func shortActor(actor string) string {
	rest, ok := strings.CutPrefix(actor, "spiffe://")
	if !ok {
		return actor
	}
	if _, path, ok := strings.Cut(rest, "/"); ok {
		return path
	}
	return actor
}

func blankZero(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

func localItems(dir string, f audit.Filter) iter.Seq2[client.AuditItem, error] {
	return func(yield func(client.AuditItem, error) bool) {
		for it, err := range audit.List(logFolder(dir), f) {
			if err != nil {
				yield(client.AuditItem{}, err)
				return
			}
			if !yield(client.ShowItem(it), nil) {
				return
			}
		}
	}
}

func (t *tool) remoteItems(ctx context.Context, f audit.Filter) iter.Seq2[client.AuditItem, error] {
	return func(yield func(client.AuditItem, error) bool) {
		c, err := t.client()
		if err != nil {
			yield(client.AuditItem{}, err)
			return
		}
		body, err := c.Stream(ctx, "GET", "/v1/audit", client.Query(f), "", nil)
		if err != nil {
			yield(client.AuditItem{}, err)
			return
		}
		defer body.Close()
		dec := json.NewDecoder(body)
		for dec.More() {
			var line struct {
				client.AuditItem
				Error string `json:"error"`
			}
			if err := dec.Decode(&line); err != nil {
				yield(client.AuditItem{}, fmt.Errorf("server's answer: %w", err))
				return
			}
			if line.Error != "" {
				yield(client.AuditItem{}, errors.New(line.Error))
				return
			}
			if !yield(line.AuditItem, nil) {
				return
			}
		}
	}
}
