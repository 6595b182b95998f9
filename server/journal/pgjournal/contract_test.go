package pgjournal_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"wardlink/server/journal"
	"wardlink/server/journal/journaltest"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

func open(url string) (journal.Store, error) {
	j, err := pgjournal.Open(context.Background(), pgjournal.Config{URL: url, Consumers: journaltest.Consumers()})
	if err != nil {
		return nil, err // and not a Store that holds nil
	}
	return j, nil
}

func TestMain(m *testing.M) {
	journaltest.Child(open)
	os.Exit(m.Run())
}

// place is a fresh journal on the test process's own PostgreSQL.
func place(t testing.TB) journaltest.Place { return placeAt(sqldbtest.Filled(t, migrations()...)) }

// migrations are the journal's, with parts so small that a test fills some.
func migrations() []sqldb.Migration {
	m := pgjournal.Migrations()
	m[0].Postgres = strings.ReplaceAll(m[0].Postgres, "67108864", "1048576")
	return m
}

func placeAt(url string) journaltest.Place {
	return journaltest.Place{
		Name: url,
		Open: func() (journal.Store, error) { return open(url) },
		Check: func(t testing.TB) journal.Report {
			r, err := pgjournal.Check(context.Background(), url)
			if err != nil {
				t.Error(err)
			}
			for _, f := range r.Findings {
				t.Errorf("check: %s: %s", f.Path, f.Problem)
			}
			return r
		},
	}
}

// TestContract: what the journal in PostgreSQL has in common with every other.
func TestContract(t *testing.T) {
	t.Parallel()
	journaltest.Run(t, place)
}
