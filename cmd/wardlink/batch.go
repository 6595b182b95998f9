package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"wardlink/internal/durable"
	"wardlink/server/api/client"
)

// batchHelp is what an operator has to know before many gateways are admitted at once.
const batchHelp = `With --batch the gateways of a CSV file are admitted at once. It is separated by commas, or by semicolons, and its header names the columns
  id,site,ward,profile      as above; profile may be left out
  ek_sha256                 as 'wardlink-agent identity' prints it: surest
  fingerprint               as the box shows it on its console, its label and in 'wardlink-agent doctor'
  serial                    the box's serial number
of which id and one of the last three are needed. The surest that a row gives decides; the others must agree.

Endorsement key and fingerprint are proven by the TPM before it enters the waiting list. A serial number is only what a box says of
itself: whoever knows one can claim it with any TPM. So rows are matched by it alone only with --trust-serial, which names the network
on which there are no boxes but yours, and even then only if exactly one waiting TPM claims it, from that network, with an EK
certificate of a maker that the server trusts, and no gateway was approved by it before.

The same file again changes nothing that stands, so that failed rows alone are tried again. They are also left in FILE.failed.csv with
the reason, to be mended and given to --batch in their turn. FILE.report.json says what became of each row, and by what it was matched.`

// batchOptions are the flags of a batch approval.
type batchOptions struct {
	file   string
	report string
	trust  []string
	wait   time.Duration
}

// batchReport is the report file.
type batchReport struct {
	Batch       string                  `json:"batch"`
	At          time.Time               `json:"at"`
	Seconds     float64                 `json:"seconds"`
	TrustSerial []string                `json:"trust_serial"`
	Counts      map[string]int          `json:"counts"`
	Rows        []client.ApprovalResult `json:"rows"` // in the order of the file
	Failed      string                  `json:"failed_rows,omitempty"`
}

const (
	batchRequest = 20              // rows of one request, so that there is progress to show
	batchPoll    = 2 * time.Second // between two looks for gateways that do not wait yet
)

func (t *tool) approveBatch(ctx context.Context, o batchOptions) error {
	rows, err := readBatch(o.file)
	if err != nil {
		return err
	}
	c, err := t.client()
	if err != nil {
		return err
	}
	run := &batchRun{tool: t, client: c, options: o, rows: rows, results: make([]client.ApprovalResult, len(rows)), begun: time.Now()}
	run.screen = isTerminal(t.err)
	if run.width, _ = screenSize(t.err); run.width == 0 {
		run.width = 80
	}
	err = run.all(ctx)
	run.clear()
	if err != nil && run.decided == 0 {
		return err
	}
	// What was decided is told whatever ended the run.
	return errors.Join(err, run.tell())
}

// readBatch reads a CSV file of gateways. Where a list separator is a semicolon, as in much of Europe, spreadsheets write that; a header that has it
// and no comma says so.
func readBatch(path string) ([]client.BatchFileRow, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("batch: %w", err)
	}
	if header, _, _ := bytes.Cut(data, []byte("\n")); bytes.ContainsRune(header, ';') && !bytes.ContainsRune(header, ',') {
		r := csv.NewReader(bytes.NewReader(data))
		r.Comma, r.FieldsPerRecord = ';', -1
		lines, err := r.ReadAll()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		var commas bytes.Buffer
		if err := csv.NewWriter(&commas).WriteAll(lines); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		data = commas.Bytes()
	}
	rows, err := client.ParseBatch(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return rows, nil
}

// batchRun is one pass over a batch file.
type batchRun struct {
	tool    *tool
	client  *client.Client
	options batchOptions
	rows    []client.BatchFileRow
	results []client.ApprovalResult // Result is "" while a row is open
	decided int
	failed  int
	begun   time.Time
	screen  bool
	width   int
}

// all asks until every row is decided, or the wait for gateways that do not wait yet is over.
func (b *batchRun) all(ctx context.Context) error {
	until := b.begun.Add(b.options.wait)
	for {
		last := !time.Now().Before(until)
		if err := b.pass(ctx, last); err != nil {
			return err
		}
		if b.decided == len(b.rows) {
			return nil
		}
		b.progress()
		select {
		case <-ctx.Done():
			return errors.New("interrupted: rows without a result were not decided")
		case <-time.After(min(batchPoll, max(0, time.Until(until)))):
		}
	}
}

// pass asks once for each open row.
func (b *batchRun) pass(ctx context.Context, last bool) error {
	var open []int
	for i := range b.rows {
		if b.results[i].Result == "" {
			open = append(open, i)
		}
	}
	for len(open) > 0 {
		some := open[:min(batchRequest, len(open))]
		open = open[len(some):]
		in := client.BatchApproval{TrustSerial: b.options.trust, Last: last}
		for _, i := range some {
			in.Rows = append(in.Rows, b.rows[i].ApprovalRow)
		}
		var out []client.ApprovalResult
		if err := b.client.Post(ctx, "/v1/gateways/approve-batch", in, &out); err != nil {
			return err
		}
		if len(out) != len(some) {
			return fmt.Errorf("the server answers %d results for %d rows; is it of another release?", len(out), len(some))
		}
		for k, i := range some {
			if out[k].Result == "absent" && !last {
				continue
			}
			b.results[i] = out[k]
			b.decided++
			if !done(out[k]) {
				b.failed++
			}
			b.line(b.rows[i], out[k])
		}
		b.progress()
	}
	return nil
}

func done(r client.ApprovalResult) bool { return r.Result == "approved" || r.Result == "unchanged" }

// line tells of a row as it is decided, where there is no bar to see.
func (b *batchRun) line(row client.BatchFileRow, r client.ApprovalResult) {
	if b.screen {
		return
	}
	text := fmt.Sprintf("%d of %d: %s %s", b.decided, len(b.rows), printable(row.ID), r.Result)
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	fmt.Fprintln(b.tool.err, text)
}

// progress draws the bar.
func (b *batchRun) progress() {
	if !b.screen {
		return
	}
	const cells = 30
	full := cells * b.decided / len(b.rows)
	text := fmt.Sprintf("[%s%s] %d of %d", strings.Repeat("#", full), strings.Repeat("-", cells-full), b.decided, len(b.rows))
	if b.failed > 0 {
		text += fmt.Sprintf(", %d failed", b.failed)
	}
	if open := len(b.rows) - b.decided; open > 0 && b.options.wait > 0 {
		left := time.Until(b.begun.Add(b.options.wait)).Round(time.Second)
		text += fmt.Sprintf("; waits %s for %d not seen yet", max(0, left), open)
	}
	fmt.Fprintf(b.tool.err, "\r%s\x1b[K", text[:min(len(text), max(20, b.width-1))])
}

func (b *batchRun) clear() {
	if b.screen {
		fmt.Fprint(b.tool.err, "\r\x1b[K")
	}
}

// tell writes the report, the failed rows and the table.
func (b *batchRun) tell() error {
	base := strings.TrimSuffix(strings.TrimSuffix(b.options.file, ".csv"), ".failed")
	r := batchReport{Batch: b.options.file, At: b.begun.UTC(), Seconds: time.Since(b.begun).Round(time.Millisecond).Seconds(),
		TrustSerial: append([]string{}, b.options.trust...), Counts: map[string]int{}}
	var failed []client.BatchFileRow
	var reasons []string
	for i, res := range b.results {
		if res.Result == "" {
			res.ID, res.Result, res.Reason = b.rows[i].ID, "open", "the run ended before it was decided"
		}
		r.Counts[res.Result]++
		r.Rows = append(r.Rows, res)
		if !done(res) {
			failed, reasons = append(failed, b.rows[i]), append(reasons, res.Result+": "+res.Reason)
		}
	}
	file := base + ".failed.csv"
	if len(failed) > 0 {
		r.Failed = file
		var text bytes.Buffer
		if err := client.WriteBatch(&text, failed, reasons); err != nil {
			return err
		}
		if err := durable.WriteFile(file, text.Bytes(), 0o644); err != nil {
			return fmt.Errorf("the failed rows: %w", err)
		}
	} else if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) { // a former run's, all mended
		return fmt.Errorf("the failed rows of a former run: %w", err)
	}
	report := b.options.report
	if report == "" {
		report = base + ".report.json"
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(report, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return b.table(r, report)
}

func (b *batchRun) table(r batchReport, report string) error {
	t := b.tool
	var err error
	if t.json {
		err = t.printJSON(r)
	} else {
		err = t.table(func(w io.Writer) {
			fmt.Fprintln(w, "GATEWAY\tRESULT\tMATCHED BY\tFINGERPRINT\tREASON")
			for _, row := range r.Rows {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", printable(row.ID), row.Result, orDash(row.By), orDash(row.Fingerprint), printable(row.Reason))
			}
		})
		fmt.Fprintf(t.out, "\n%d approved, %d unchanged, %d failed, in %.1f s; report: %s\n", r.Counts["approved"], r.Counts["unchanged"],
			len(r.Rows)-r.Counts["approved"]-r.Counts["unchanged"], r.Seconds, report)
	}
	if err == nil && r.Failed != "" {
		return fmt.Errorf("some rows failed; mend them in %s and run: wardlink gateway approve --batch %s", r.Failed, r.Failed)
	}
	return err
}
