package registry

import (
	"context"
	"strings"
	"testing"

	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// The watcher of certificates asks for all gateways; it must not read all certificates that there ever were.
func TestCertificatesAreSought(t *testing.T) {
	sqldbtest.SQLite(t, "it reads SQLite's plan; PostgreSQL's goes by how many rows there are")
	db, _ := sqldbtest.New(t, append(sqldb.OutboxMigrations(), Migrations()...)...)
	rows, err := db.Query(context.Background(), "EXPLAIN QUERY PLAN "+certificatesQuery, string(Active))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var plan strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(step + "\n")
	}
	if strings.Contains(plan.String(), "SCAN c") || strings.Contains(plan.String(), "SCAN k") || strings.Contains(plan.String(), "SCAN x") ||
		!strings.Contains(plan.String(), "SEARCH c USING INDEX gateway_certificates_spki") {
		t.Errorf("%s", plan.String())
	}
}
