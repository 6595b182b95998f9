package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"wardlink/server/api/client"
)

func (t *tool) account() *cobra.Command {
	var epochs, check bool
	c := &cobra.Command{
		Use: "account [GATEWAY]", Short: "Show that every batch is accounted for, and check it", Args: atMost("gateway ID"),
		Long: `Shows what became of the batches of each gateway and lane, in batch numbers. A number is used up when a batch is sealed, and each is in one
column alone:

  assigned  = journaled + buffered + parked + lost + void
  journaled = stored + pending + dead

The gateway's own sealed reports say what it assigned, holds, lost (evicted or damaged) and left void; the server counts what came. A batch
that comes after it was called lost counts as journaled. "<=" marks an upper bound: the gateway names numbers besides, or assigned them after its
newest report. DIFFERENCE is what nobody accounts for. --json prints the rows of each epoch, a start of the gateway's agent, too.

With --check the command says so if every row balances, exactly or by an upper bound; else it names each that does not, and ends with 1.`,
		Example: `  wardlink account
  wardlink account icu-7 --epochs
  wardlink account --check || wardlink alerts
  wardlink account --json | jq '.[].lanes[] | select(.lost > 0)'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			gateway := ""
			if len(args) > 0 {
				if gateway = args[0]; gateway == "" {
					return errors.New("the gateway's name is empty; leave it out to see all gateways")
				}
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			accounts, err := c.Accounts(cmd.Context(), gateway, epochs || t.json)
			if err != nil {
				return err
			}
			if t.json {
				err = t.printJSON(accounts)
			} else {
				_, err = io.WriteString(t.out, accountPage(accounts, epochs))
			}
			if err != nil || !check {
				return err
			}
			doubts := accountDoubts(accounts)
			for _, d := range doubts {
				fmt.Fprintln(t.err, d)
			}
			if len(doubts) > 0 {
				return errSaid
			}
			if !t.json && len(accounts) > 0 {
				_, err = fmt.Fprintln(t.out, "every row balances")
			}
			return err
		},
	}
	c.Flags().BoolVar(&epochs, "epochs", false, "a row for each epoch, a start of the gateway's agent")
	c.Flags().BoolVar(&check, "check", false, "end with 1 unless every row balances")
	return c
}

// accountPage is the table: names to the left, figures to the right.
func accountPage(accounts []client.Account, epochs bool) string {
	head := []string{"GATEWAY", "LANE", "ASSIGNED", "JOURNALED", "STORED", "PENDING", "DEAD", "BUFFERED", "PARKED", "LOST", "VOID", "DIFFERENCE", "REPORTED"}
	names := 2
	if epochs {
		head, names = slices.Insert(head, 2, "EPOCH"), 3
	}
	rows := [][]string{head}
	for _, a := range accounts {
		reported := "never"
		if a.Reported != nil {
			reported = span(max(0, a.At.Sub(*a.Reported))) + " ago"
		}
		of := a.Lanes
		if epochs {
			of = a.Epochs
		}
		for _, b := range of {
			row := []string{a.Gateway, b.Lane}
			if epochs {
				row = append(row, b.Epoch)
			}
			rows = append(rows, append(row, grouped(b.Assigned), grouped(b.Journaled), grouped(b.Stored), grouped(b.Pending), grouped(b.Dead),
				bounded(b, "buffered", b.Buffered), grouped(b.Parked), bounded(b, "lost", b.Lost), bounded(b, "void", b.Void), difference(b), reported))
		}
	}
	if len(rows) == 1 {
		return "no batch has come yet\n"
	}
	return columns(rows, names)
}

// bounded is a figure, with a mark if it is an upper bound.
func bounded(b client.Balance, class string, n uint64) string {
	if slices.Contains(b.AtMost, class) {
		return "<=" + grouped(n)
	}
	return grouped(n)
}

func difference(b client.Balance) string {
	switch {
	case !b.Told:
		return "unknown"
	case slices.Contains(b.AtMost, "difference"):
		return "<=" + strconv.FormatInt(b.Difference, 10)
	}
	return strconv.FormatInt(b.Difference, 10)
}

// columns lines rows up: the first names columns to the left, the others to the right, the last as it comes.
func columns(rows [][]string, names int) string {
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, cell := range r {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			switch {
			case i == len(r)-1:
				b.WriteString(cell)
			case i < names:
				b.WriteString(cell + pad + "  ")
			default:
				b.WriteString(pad + cell + "  ")
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// accountDoubts has a line for each row, by epoch, that does not balance.
func accountDoubts(accounts []client.Account) (out []string) {
	for _, a := range accounts {
		for _, b := range a.Epochs {
			if b.Balances {
				continue
			}
			var why []string
			if !b.Told {
				why = append(why, "no report of the gateway has spoken of it yet")
			}
			if b.Difference != 0 {
				why = append(why, fmt.Sprintf("nobody accounts for %d of %d numbers%s", b.Difference, b.Assigned, missingRuns(b)))
			}
			if b.Unsettled != 0 {
				why = append(why, fmt.Sprintf("%d batches are journaled, %d stored, %d pending and %d dead", b.Journaled, b.Stored, b.Pending, b.Dead))
			}
			out = append(out, fmt.Sprintf("%s %s of epoch %s does not balance: %s", a.Gateway, b.Lane, b.Epoch, strings.Join(why, "; ")))
		}
	}
	return out
}

// missingRuns names the first of them.
func missingRuns(b client.Balance) string {
	if len(b.Missing) == 0 {
		return ""
	}
	var runs []string
	named := uint64(0)
	for _, r := range b.Missing {
		runs = append(runs, r.String())
		named += r.Last - r.First + 1
	}
	text := " (" + strings.Join(runs, ", ")
	if b.Difference > 0 && named < uint64(b.Difference) {
		text += " and others"
	}
	return text + ")"
}
