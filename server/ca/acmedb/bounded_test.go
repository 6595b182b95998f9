package acmedb

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/smallstep/certificates/acme"

	"wardlink/server/sqldb/sqldbtest"
)

// TestTablesStayBounded is a fleet that renews for days: 1,000 gateways, certificates of 24 hours that are renewed after 13.2 on average (enroll.NextRenewal), each with seven
// requests under the account that the gateway keeps, and beside it one that begins and never ends. CA_DAYS says how many days (default: three hours).
func TestTablesStayBounded(t *testing.T) {
	lasts := 3 * time.Hour
	if text := os.Getenv("CA_DAYS"); text != "" {
		days, err := strconv.Atoi(text)
		if err != nil || days < 1 {
			t.Fatalf("CA_DAYS=%s: expected a number of days", text)
		}
		lasts = time.Duration(days) * 24 * time.Hour
	}
	const (
		gateways = 1000
		requests = 7 // each uses a nonce
		step     = 5 * time.Minute
	)
	perStep := float64(gateways) * step.Hours() / 13.2
	db, _ := sqldbtest.New(t, Migrations()...)
	c := newClock()
	s := open(t, db, c.now)
	ctx := t.Context()
	cert := leaf(t)
	keys := make([]*acme.Account, gateways)
	most := map[string]int{}
	renewals, owed, next := 0, 0.0, 0
	for range int(lasts / step) {
		for owed += perStep; owed >= 1; owed-- {
			r := s.Request()
			for range requests {
				if err := r.DeleteNonce(ctx, s.newNonce()); err != nil {
					t.Fatal(err)
				}
			}
			if keys[next] == nil {
				keys[next] = account(t)
			}
			acc := *keys[next]
			name := fmt.Sprintf("gw-%d", next)
			next = (next + 1) % gateways
			if err := r.CreateAccount(ctx, &acc); err != nil {
				t.Fatal(err)
			}
			if _, err := ordered(ctx, r, acc.ID, name); err != nil { // the one that is left
				t.Fatal(err)
			}
			o, err := ordered(ctx, r, acc.ID, name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := attest(ctx, r, o.ID, Proof{EK: [32]byte{1}}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Claim(ctx, o.ID); err != nil {
				t.Fatal(err)
			}
			if err := r.CreateCertificate(ctx, &acme.Certificate{AccountID: acc.ID, OrderID: o.ID, Leaf: cert}); err != nil {
				t.Fatal(err)
			}
			renewals++
		}
		c.pass(step)
		for _, table := range []string{"ca_nonces", "ca_accounts", "ca_orders"} {
			most[table] = max(most[table], query(t, s, "SELECT COUNT(*) FROM "+table))
		}
		if err := s.Prune(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// An hour of what was issued; two steps of what was not; at most three generations of nonces, of a step each.
	hour := int(perStep*float64(time.Hour/step)) + 1
	for table, bound := range map[string]int{
		"ca_orders":   hour + int(perStep*float64(time.Hour/step)/2) + 10,
		"ca_accounts": hour + 2*int(perStep) + 10,
		"ca_nonces":   3 * requests * (int(perStep) + 1),
	} {
		if most[table] > bound {
			t.Errorf("%s had %d rows; expected at most %d", table, most[table], bound)
		}
	}
	t.Logf("%d gateways, %s, %d renewals: at most %d orders, %d accounts, %d used nonces", gateways, lasts, renewals, most["ca_orders"], most["ca_accounts"], most["ca_nonces"])
}
