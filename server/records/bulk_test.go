package records_test

import (
	"strings"
	"testing"

	"wardlink/server/records"
	"wardlink/server/sqldb/sqldbtest"
)

// Rows that are changed together are each sought by their key: the tables hold years.
func TestRowsThatAreChangedTogetherAreSought(t *testing.T) {
	sqldbtest.SQLite(t, "it reads SQLite's plan; PostgreSQL's goes by how many rows there are")
	f := setup(t)
	for _, q := range records.UpdatesOfMany() {
		rows, err := f.db.Query(f.ctx, "EXPLAIN QUERY PLAN "+q, make([]any, strings.Count(q, "?"))...)
		if err != nil {
			t.Fatal(err)
		}
		var plan strings.Builder
		for rows.Next() {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				t.Fatal(err)
			}
			plan.WriteString(step + "\n")
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if text := plan.String(); !strings.Contains(text, "SEARCH batches USING PRIMARY KEY (stream=? AND number=?)") &&
			!strings.Contains(text, "SEARCH account_runs USING PRIMARY KEY (stream=? AND first=?)") {
			t.Errorf("%s\n%s", q, text)
		}
	}
}
