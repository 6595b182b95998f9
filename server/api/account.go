package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/records"
	"wardlink/telemetry"
)

// Accounts are what the API needs of the account of batch numbers.
type Accounts interface {
	NumberAccount(ctx context.Context, gateway string) (records.NumberAccount, error)
	NumberAccounts(ctx context.Context, after string, limit int) ([]records.NumberAccount, error)
}

// How many gateways one answer holds: without their epochs some kilobytes each; with them a row of 0.4 KB for each lane of each start of the agent.
const (
	accountsPage = 200
	epochsPage   = 20
)

// listAccounts gives the accounts of all gateways, a page at a time: of the epochs those that do not balance, or all if they are asked for.
func (a *API) listAccounts(w http.ResponseWriter, r *http.Request, who who) error {
	after, epochs, limit := r.URL.Query().Get("after"), r.URL.Query().Get("epochs"), accountsPage
	if err := spiffe.ValidName(after); after != "" && err != nil {
		return badRequest{err}
	}
	switch epochs {
	case "":
	case "all":
		limit = epochsPage
	default:
		return badRequest{fmt.Errorf("epochs: %.40q; expected all, or none of it", epochs)}
	}
	now := time.Now()
	accounts, err := a.Accounts.NumberAccounts(r.Context(), after, limit)
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{
		Type: audit.AccountRead, Target: "gateways", Outcome: audit.Success, Count: uint64(len(accounts)),
	}); err != nil {
		return err
	}
	page := client.AccountPage{Accounts: []client.Account{}}
	for _, one := range accounts {
		shown, err := a.shownAccount(r.Context(), one, now)
		if err != nil {
			return err
		}
		if epochs == "" {
			shown.Epochs = slices.DeleteFunc(shown.Epochs, func(b client.Balance) bool { return b.Balances })
		}
		page.Accounts = append(page.Accounts, shown)
	}
	if len(accounts) == limit {
		page.Next = accounts[len(accounts)-1].Gateway
	}
	return writeJSON(w, page)
}

// showAccount gives the account of one gateway. One that never sent anything has an empty one.
func (a *API) showAccount(w http.ResponseWriter, r *http.Request, who who) error {
	id := r.PathValue("id")
	if err := spiffe.ValidName(id); err != nil {
		return badRequest{err}
	}
	if _, err := a.Registry.Get(r.Context(), id); err != nil {
		return err
	}
	now := time.Now()
	account, err := a.Accounts.NumberAccount(r.Context(), id)
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.AccountRead, Target: id, Outcome: audit.Success, Count: 1}); err != nil {
		return err
	}
	shown, err := a.shownAccount(r.Context(), account, now)
	if err != nil {
		return err
	}
	return writeJSON(w, shown)
}

// shownAccount gives it as it is shown. Of a gateway that gave its word that it is wiped nothing is held any more, whatever it reported before.
func (a *API) shownAccount(ctx context.Context, of records.NumberAccount, now time.Time) (client.Account, error) {
	end, err := a.Registry.End(ctx, of.Gateway)
	if err != nil {
		return client.Account{}, err
	}
	if end != nil && !end.Confirmed.IsZero() {
		for i := range of.Rows {
			of.Rows[i].Wipe()
		}
	}
	return accountOf(of, now), nil
}

func accountOf(a records.NumberAccount, now time.Time) client.Account {
	out := client.Account{Gateway: a.Gateway, At: now.UTC().Truncate(time.Millisecond), Lanes: []client.Balance{}, Epochs: []client.Balance{}}
	if !a.Reported.IsZero() {
		at := a.Reported.UTC()
		out.Reported = &at
	}
	var sums [telemetry.LaneCount]records.Balance
	var rows, doubtful [telemetry.LaneCount]int
	for _, b := range a.Rows {
		out.Epochs = append(out.Epochs, shownBalance(b))
		sum := &sums[b.Lane]
		if rows[b.Lane]++; rows[b.Lane] == 1 {
			sum.Lane, sum.Told = b.Lane, true
		}
		sum.Add(b)
		if !b.Balances() {
			doubtful[b.Lane]++
		}
	}
	for lane, n := range rows {
		if n == 0 {
			continue
		}
		sum := shownBalance(sums[lane])
		sum.Balances = doubtful[lane] == 0
		out.Lanes = append(out.Lanes, sum)
	}
	return out
}

func shownBalance(b records.Balance) client.Balance {
	out := client.Balance{
		Lane: b.Lane.String(), Assigned: b.Assigned, Journaled: b.Journaled, Stored: b.Stored, Pending: b.Pending, Dead: b.Dead,
		Buffered: b.Buffered, Parked: b.Parked, Lost: b.Lost, Void: b.Void, Untold: b.Untold,
		Difference: b.Difference(), Unsettled: b.Unsettled(), Told: b.Told, Balances: b.Balances(), AtMost: []string{}, Missing: []client.Span{},
	}
	if b.Epoch != (telemetry.Epoch{}) {
		out.Epoch = b.Epoch.String()
	}
	for _, c := range []struct {
		class records.Classes
		name  string
	}{{records.ClassBuffered, "buffered"}, {records.ClassLost, "lost"}, {records.ClassVoid, "void"}, {records.ClassMissing, "difference"}} {
		if b.AtMost&c.class != 0 {
			out.AtMost = append(out.AtMost, c.name)
		}
	}
	for _, m := range b.Missing {
		out.Missing = append(out.Missing, client.Span{First: m.First, Last: m.Last})
	}
	return out
}
