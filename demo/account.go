package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"wardlink/internal/child"
	"wardlink/server/api/client"
)

// reportEvery is how often the gateways of the demonstration report of themselves, so that the account need not wait for a minute.
const reportEvery = "2s"

// Accounted is the account of all batches of one lane, of every gateway and every start of its agent, as the server shows it.
type Accounted struct {
	client.Balance
	Rows int `json:"rows"` // accounts of one gateway and epoch each, every one of which balances by itself
}

// whole: every batch is accounted for, and none is lost.
func (a *Accounted) whole() bool {
	return a.Balances && a.Difference == 0 && a.Unsettled == 0 && a.Lost == 0 && a.Dead == 0 && a.Parked == 0 &&
		a.Assigned == a.Journaled+a.Buffered+a.Void && a.Journaled == a.Stored+a.Pending &&
		(a.Lane == laneSelf || a.Buffered == 0 && a.Assigned > 0 && len(a.AtMost) == 0)
}

// laneSelf is the gateways' own, on which a report may always be on its way.
const laneSelf = "self"

// watchAccount looks at the accounts while things go wrong, until ctx ends: a number that nobody accounts for is a fault at any moment, not at the
// end alone. While the server is away nobody can look.
func (t *theatre) watchAccount(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		accounts, err := t.api.Accounts(ctx, "", false)
		if err != nil {
			continue
		}
		t.count(func(s *Summary) { s.AccountLooks++ })
		if row := missing(accounts); row != "" {
			t.count(func(s *Summary) { s.Imbalances++ })
			t.stages.note("%s", row)
		}
	}
}

// missing names the first row in which a number is in no class, or a batch in no state; "" when there is none.
func missing(accounts []client.Account) string {
	for _, a := range accounts {
		for _, b := range a.Epochs {
			if b.Difference != 0 || b.Unsettled != 0 {
				return fmt.Sprintf("the account of %s does not balance: lane %s of epoch %s: %+v", a.Gateway, b.Lane, b.Epoch, b)
			}
		}
	}
	return ""
}

// account waits until every gateway has reported once more, now that all is delivered, and adds the accounts up. A number that nobody accounts
// for ends the demonstration, whenever it is seen.
func (t *theatre) account(ctx context.Context) error {
	t.stages.begin("account")
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, returnTime)
	defer cancel()
	var accounts []client.Account
	var open string
	err := child.Until(limited, "the gateways' reports", t.running(), func(ctx context.Context) (bool, error) {
		var err error
		if accounts, err = t.api.Accounts(ctx, "", true); err != nil {
			return false, err
		}
		open = ""
		if row := missing(accounts); row != "" {
			return false, errors.New(row)
		}
		for _, g := range t.fleet {
			i := slices.IndexFunc(accounts, func(a client.Account) bool { return a.Gateway == g.name })
			if i < 0 {
				return false, fmt.Errorf("the server has no account of %s", g.name)
			}
			if why := unfinished(accounts[i], begun); why != "" {
				open = g.name + ": " + why
			}
		}
		t.stages.progress("%s", open)
		return open == "", nil
	})
	if err != nil && open != "" {
		return fmt.Errorf("%s (%w)", open, err)
	}
	if err != nil {
		return err
	}
	t.summary.Account = t.addUp(accounts)
	rows := 0
	for _, l := range t.summary.Account {
		rows += l.Rows
	}
	t.stages.done("every number of %s is accounted for", plurals(rows, "row (gateway, start, lane)", "rows (gateway, start, lane)"))
	return nil
}

// unfinished says what a gateway's account waits for, once all is delivered.
func unfinished(a client.Account, begun time.Time) string {
	if a.Reported == nil || !a.Reported.After(begun) {
		return "no report since all was delivered"
	}
	for _, b := range a.Epochs {
		switch {
		case !b.Told:
			return fmt.Sprintf("no report of epoch %s", b.Epoch)
		case b.Lane != laneSelf && (b.Buffered > 0 || b.Pending > 0 || len(b.AtMost) > 0):
			return fmt.Sprintf("%d batches of lane %s buffered, %d pending, upper bounds: %s", b.Buffered, b.Lane, b.Pending, strings.Join(b.AtMost, ", "))
		}
	}
	return ""
}

// addUp sums the accounts of the gateways that deliver. The one that was carried away has said less than the rest; its rows were looked at.
func (t *theatre) addUp(accounts []client.Account) []Accounted {
	var sums []Accounted
	for _, a := range accounts {
		if !slices.ContainsFunc(t.fleet, func(g *gateway) bool { return g.name == a.Gateway }) {
			continue
		}
		for _, b := range a.Epochs {
			i := slices.IndexFunc(sums, func(s Accounted) bool { return s.Lane == b.Lane })
			if i < 0 {
				sums = append(sums, Accounted{Balance: client.Balance{Lane: b.Lane, AtMost: []string{}, Missing: []client.Span{}, Told: true, Balances: true}})
				i = len(sums) - 1
			}
			sums[i].add(b)
		}
	}
	return sums
}

func (a *Accounted) add(b client.Balance) {
	a.Rows++
	a.Assigned += b.Assigned
	a.Journaled += b.Journaled
	a.Stored += b.Stored
	a.Pending += b.Pending
	a.Dead += b.Dead
	a.Buffered += b.Buffered
	a.Parked += b.Parked
	a.Lost += b.Lost
	a.Void += b.Void
	a.Untold += b.Untold
	a.Difference += b.Difference
	a.Unsettled += b.Unsettled
	a.Told = a.Told && b.Told
	a.Balances = a.Balances && b.Balances
	for _, class := range b.AtMost {
		if !slices.Contains(a.AtMost, class) {
			a.AtMost = append(a.AtMost, class)
		}
	}
}

// accountTable is the account in rows that line up.
func accountTable(sums []Accounted) string {
	w := &strings.Builder{}
	fmt.Fprintf(w, "  %-10s %9s = %9s (%9s %7s %5s) + %8s + %6s + %5s + %5s   %s\n", "batches", "assigned", "journaled", "stored", "pending", "dead",
		"buffered", "parked", "lost", "void", "difference")
	for _, a := range sums {
		fmt.Fprintf(w, "  %-10s %9d = %9d (%9d %7d %5d) + %8d + %6d + %5d + %5d   %d\n", a.Lane, a.Assigned, a.Journaled, a.Stored, a.Pending, a.Dead,
			a.Buffered, a.Parked, a.Lost, a.Void, a.Difference)
	}
	return w.String()
}
