package records_test

import (
	"strings"
	"testing"

	"wardlink/server/records"
	"wardlink/server/sqldb/sqldbtest"
)

// Rows that are changed together are each sought by their key: the tables hold years.
func TestRowsThatAreChangedTogetherAreSought(t *testing.T) {
	f := setup(t)
	for _, q := range records.UpdatesOfMany() {
		plan := sqldbtest.Plan(t, f.db, q, make([]any, strings.Count(q, "?"))...)
		if !strings.Contains(plan, "SEARCH batches USING PRIMARY KEY (stream=? AND number=?)") &&
			!strings.Contains(plan, "SEARCH account_runs USING PRIMARY KEY (stream=? AND first=?)") {
			t.Errorf("%s\n%s", q, plan)
		}
	}
}
