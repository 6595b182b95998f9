package client

import (
	"context"
	"fmt"
	"net/url"
	"time"
)

// Account is the account of one gateway's batch numbers at one instant.
type Account struct {
	Gateway  string     `json:"gateway"`
	At       time.Time  `json:"at"`       // by the server's clock, as every instant here
	Reported *time.Time `json:"reported"` // receipt of the gateway's newest report; null: never
	Lanes    []Balance  `json:"lanes"`    // epochs summed
	Epochs   []Balance  `json:"epochs"`   // by lane; in a list that was asked for without them only those that do not balance
}

// Balance is one row. Each of the gateway's batch numbers is in one class alone:
//
//	assigned  = journaled + buffered + parked + lost + void
//	journaled = stored + pending + dead
type Balance struct {
	Lane  string `json:"lane"`
	Epoch string `json:"epoch,omitempty"` // a start of the gateway's agent; none in a sum

	Assigned  uint64 `json:"assigned"`  // numbers that the gateway used up
	Journaled uint64 `json:"journaled"` // durable at the hospital
	Stored    uint64 `json:"stored"`    // of them opened
	Pending   uint64 `json:"pending"`   // of them waiting to be opened
	Dead      uint64 `json:"dead"`      // of them not to be opened, and kept
	Buffered  uint64 `json:"buffered"`  // waiting in the gateway
	Parked    uint64 `json:"parked"`    // kept in the gateway, since the server refused them
	Lost      uint64 `json:"lost"`      // evicted or damaged, as the gateway reported
	Void      uint64 `json:"void"`      // used up, and nothing came of them
	// Untold is how many of Buffered the gateway assigned after its newest report, and which have not come though later ones have.
	Untold uint64 `json:"untold"`

	Difference int64    `json:"difference"` // numbers that nobody accounts for
	Unsettled  int64    `json:"unsettled"`  // journaled batches that are neither stored nor pending nor dead
	AtMost     []string `json:"at_most"`    // the classes whose figure is an upper bound
	Told       bool     `json:"told"`       // false: no report has spoken of it, so that nothing can be held against what came
	Balances   bool     `json:"balances"`   // both equations hold, exactly or by an upper bound that says so
	Missing    []Span   `json:"missing"`    // the first runs of numbers that nobody accounts for; of an epoch
}

// Span is a run of numbers, both ends included.
type Span struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// String is "17" or "17-19".
func (s Span) String() string {
	if s.First == s.Last {
		return fmt.Sprint(s.First)
	}
	return fmt.Sprintf("%d-%d", s.First, s.Last)
}

// AccountPage is a part of the list of accounts.
type AccountPage struct {
	Accounts []Account `json:"accounts"`
	Next     string    `json:"next,omitempty"` // ask for those behind this name; "" when there are no more
}

// Accounts gives the account of one gateway with all its epochs, or of every gateway that has sent anything when it is "", then with all epochs if
// asked for, and else with those that do not balance.
func (c *Client) Accounts(ctx context.Context, gateway string, epochs bool) ([]Account, error) {
	if gateway != "" {
		var one Account
		err := c.Get(ctx, "/v1/accounts/"+url.PathEscape(gateway), nil, &one)
		return []Account{one}, err
	}
	out := []Account{}
	q := url.Values{}
	if epochs {
		q.Set("epochs", "all")
	}
	for {
		var page AccountPage
		if err := c.Get(ctx, "/v1/accounts", q, &page); err != nil {
			return nil, err
		}
		out = append(out, page.Accounts...)
		if page.Next == "" {
			return out, nil
		}
		q.Set("after", page.Next)
	}
}
