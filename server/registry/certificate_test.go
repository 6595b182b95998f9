package registry

import (
	"strings"
	"testing"

	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// The watcher of certificates asks for all gateways; it must not read all certificates that there ever were.
func TestCertificatesAreSought(t *testing.T) {
	db, _ := sqldbtest.New(t, append(sqldb.OutboxMigrations(), Migrations()...)...)
	plan := sqldbtest.Plan(t, db, certificatesQuery, string(Active))
	if strings.Contains(plan, "SCAN c") || strings.Contains(plan, "SCAN k") || strings.Contains(plan, "SCAN x") ||
		!strings.Contains(plan, "SEARCH c USING INDEX gateway_certificates_spki") {
		t.Errorf("%s", plan)
	}
}
