package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"wardlink/server/api/client"
)

func (t *tool) records() *cobra.Command {
	return group("records", "Show what is kept, and batches that could not be opened", t.recordsDead(), t.recordsReopen(), t.recordsRetention())
}

func (t *tool) recordsDead() *cobra.Command {
	var f client.BatchFilter
	var limit int
	c := &cobra.Command{
		Use: "dead", Short: "List dead batches: accepted, kept, and not to be opened", Args: none("--gateway"),
		Long: "Lists the batches that failed to open three times. They are kept as they came; nobody sees their contents here.\n" +
			"FRAME says where a batch is: kept in the database, or, once its gateway has used up its room, in the journal only,\n" +
			"for the journal's retention.",
		Example: `  wardlink records dead
  wardlink records dead --gateway icu-3-bed-7 --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			q := f.Query()
			q.Set("limit", strconv.Itoa(limit))
			var list client.DeadBatches
			if err := c.Get(cmd.Context(), "/v1/records/dead", q, &list); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(list)
			}
			return t.printDead(list)
		},
	}
	batchFlags(c, &f)
	c.Flags().IntVar(&limit, "limit", 1000, "list at most `N`")
	return c
}

func batchFlags(c *cobra.Command, f *client.BatchFilter) {
	c.Flags().StringVar(&f.Gateway, "gateway", "", "of this `GATEWAY`")
	c.Flags().StringVar(&f.Epoch, "epoch", "", "of this `EPOCH`, a start of the gateway's agent")
	c.Flags().StringVar(&f.Lane, "lane", "", "of this `LANE`: alarm, vitals, waveform, self")
	c.Flags().StringVar(&f.Number, "number", "", "with this `NUMBER`")
	c.Flags().StringVar(&f.Reason, "reason", "", "whose reason has this `TEXT` in it")
}

func (t *tool) printDead(list client.DeadBatches) error {
	if list.Total == 0 {
		fmt.Fprintln(t.out, "no dead batches")
		return nil
	}
	if err := t.table(func(w io.Writer) {
		fmt.Fprintln(w, "GATEWAY\tEPOCH\tLANE\tNUMBER\tRECEIVED\tATTEMPTS\tBYTES\tFRAME\tSHA-256\tREASON")
		for _, d := range list.Batches {
			where := "kept"
			if !d.Kept {
				where = "journal " + strconv.FormatUint(d.JournalSeq, 10)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\t%d\t%s\t%.12s\t%s\n", d.Gateway, d.Epoch, d.Lane, d.Number,
				d.Received.Local().Format(time.DateTime), d.Attempts, d.Bytes, where, d.Frame, d.Reason)
		}
	}); err != nil {
		return err
	}
	if more := list.Total - int64(len(list.Batches)); more > 0 {
		fmt.Fprintf(t.out, "\n%d more; list them with --limit or narrow with --gateway\n", more)
	}
	fmt.Fprintln(t.out, "\nOnce the cause is mended: wardlink records reopen --gateway GATEWAY --all")
	return nil
}

func (t *tool) recordsReopen() *cobra.Command {
	var in client.ReopenRequest
	var wait time.Duration
	c := &cobra.Command{
		Use: "reopen", Short: "Have dead batches of one gateway opened again", Args: none("--gateway"),
		Long: "Has dead batches tried again, each alone, with three attempts. Do it once the cause is mended: a newer server that decodes\n" +
			"them, a key that was missing. The command waits and shows what became of them; it ends with 1 if some are dead again.",
		Example: `  wardlink records reopen --gateway icu-3-bed-7 --all
  wardlink records reopen --gateway icu-3-bed-7 --reason "cannot be decoded"
  wardlink records reopen --gateway icu-3-bed-7 --epoch 0123456789abcdef0123456789abcdef --lane vitals --number 17`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if in.Gateway == "" {
				return errors.New("--gateway is missing: whose batches are to be opened again")
			}
			if !in.All && in.Epoch == "" && in.Lane == "" && in.Number == "" && in.Reason == "" {
				return errors.New("which batches? one by --epoch, --lane and --number, those of a --reason, or --all")
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			var r client.Reopening
			if err := c.Post(cmd.Context(), "/v1/records/reopen", in, &r); err != nil {
				return err
			}
			if r, err = t.awaitReopening(cmd.Context(), c, r, wait); err != nil {
				return err
			}
			return t.printReopening(r)
		},
	}
	batchFlags(c, &in.BatchFilter)
	c.Flags().BoolVar(&in.All, "all", false, "all dead batches of the gateway")
	c.Flags().DurationVar(&wait, "wait", time.Minute, "how long to wait for their outcome; 0: do not wait")
	return c
}

// settled says that waiting longer changes nothing: what is still pending was looked at and waits for something.
func settled(r client.Reopening) bool {
	for _, o := range r.Outcomes {
		if o.State == "pending" && o.Reason != waitsForSealing {
			return false
		}
	}
	return true
}

// waitsForSealing is the reason of a batch that is pending without a failed attempt.
const waitsForSealing = "the sealing record is not there yet"

// awaitReopening asks once a second until all is settled or wait is over.
func (t *tool) awaitReopening(ctx context.Context, c *client.Client, r client.Reopening, wait time.Duration) (client.Reopening, error) {
	if wait <= 0 {
		return r, nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var now client.Reopening
		err := c.Get(ctx, fmt.Sprintf("/v1/records/reopen/%d", r.ID), nil, &now)
		switch {
		case ctx.Err() != nil:
			return r, nil
		case err != nil:
			return r, err
		}
		if !t.json && now.Pending != r.Pending {
			fmt.Fprintf(t.err, "%d of %d stored, %d dead again, %d pending\n", now.Stored, now.Batches, now.Dead, now.Pending)
		}
		if r = now; settled(r) {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-tick.C:
		}
	}
}

func (t *tool) printReopening(r client.Reopening) error {
	if t.json {
		if err := t.printJSON(r); err != nil {
			return err
		}
	} else if err := t.table(func(w io.Writer) {
		fmt.Fprintf(w, "reopened\t%d\nstored\t%d\npending\t%d\ndead again\t%d\n", r.Batches, r.Stored, r.Pending, r.Dead)
		for _, o := range r.Outcomes {
			if o.Reason != "" {
				fmt.Fprintf(w, "  %d %s\t%s\n", o.Count, o.State, o.Reason)
			}
		}
		if r.NoRoom > 0 {
			fmt.Fprintf(w, "left\t%d, for want of room: reopen again once these are stored\n", r.NoRoom)
		}
		if r.Gone > 0 {
			fmt.Fprintf(w, "left\t%d, whose frames the journal has no longer\n", r.Gone)
		}
	}); err != nil {
		return err
	}
	if r.Dead > 0 || r.NoRoom > 0 || r.Gone > 0 {
		return errSaid
	}
	return nil
}

func (t *tool) recordsRetention() *cobra.Command {
	return &cobra.Command{
		Use: "retention", Short: "Show what is kept, since when, and what was disposed of", Args: none(""),
		Example: "  wardlink records retention --json",
		Long: "Shows each class with its retention (server.yaml, section retention), the oldest that is kept, and the last disposal.\n" +
			"When the server's clock moved by more than 48 h, or the server was down that long, nothing is disposed of until the clock is back,\n" +
			"has run steadily for 7 days, or you say that it is right with 'wardlink clock confirm'.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var r client.Retention
			if err := c.Get(cmd.Context(), "/v1/records/retention", nil, &r); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(r)
			}
			return t.printRetention(r)
		},
	}
}

func (t *tool) printRetention(r client.Retention) error {
	at := func(p *time.Time, never string) string {
		if p == nil {
			return never
		}
		return p.Local().Format(time.DateTime)
	}
	if err := t.table(func(w io.Writer) {
		fmt.Fprintln(w, "CLASS\tKEPT FOR\tOLDEST\tLAST DISPOSAL\tDISPOSED\tLOOKED AT")
		for _, c := range r.Classes {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", c.Class, hours(c.KeepHours), at(c.Oldest, "-"), at(c.Disposal, "never"), c.Disposed, at(c.Checked, "not yet"))
		}
	}); err != nil {
		return err
	}
	if r.Suspended {
		fmt.Fprintf(t.out, "\nNothing is disposed of: the server's clock moved by %s since it was last believed.\n"+
			"If it is right: wardlink clock confirm\n", time.Duration(r.DriftSeconds)*time.Second)
	}
	return nil
}

// hours are days where they are whole.
func hours(h int64) string {
	if h%24 == 0 && h > 72 {
		return fmt.Sprintf("%d d", h/24)
	}
	return fmt.Sprintf("%d h", h)
}

// size is a number of bytes as people say it, in powers of ten.
func size(n int64) string {
	units, v, i := []string{"B", "kB", "MB", "GB", "TB"}, float64(n), 0
	for ; v >= 1000 && i < len(units)-1; i++ {
		v /= 1000
	}
	if v < 10 && i > 0 {
		return fmt.Sprintf("%.1f %s", v, units[i])
	}
	return fmt.Sprintf("%.0f %s", v, units[i])
}
