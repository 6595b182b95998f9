package server

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/server/keys"
	"wardlink/server/sqldb"
)

// TestOperatorsAreAnnounced: whoever mints an operator on the server's machine leaves an event that the server will journal, with the
// first operator as with the next, and also while the database is open.
func TestOperatorsAreAnnounced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	c := DefaultConfig()
	c.TrustDomain, c.Names = "ward.example", []string{"localhost"}
	if err := Init(t.Context(), InitOptions{Dir: dir, Config: c, Passphrase: keys.NewPassphrase(), Operator: "operator"}); err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(databaseFile(dir), migrations()...)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := NewOperator(t.Context(), dir, "second", ""); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(t.Context(), "SELECT id, event FROM events_out ORDER BY position")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	ids := map[audit.EventID]bool{}
	for _, want := range []string{"operator", "second"} {
		var id, body []byte
		if !rows.Next() || rows.Scan(&id, &body) != nil {
			t.Fatalf("no event of operator %q: %v", want, rows.Err())
		}
		ev, err := audit.DecodeEvent(body)
		if err != nil {
			t.Fatal(err)
		}
		ids[ev.ID] = true
		if ev.Type != audit.CertIssued || ev.Target != "spiffe://ward.example/operator/"+want || ev.Detail["serial"] == "" || ev.Time == 0 {
			t.Errorf("%+v", ev)
		}
	}
	if len(ids) != 2 || rows.Next() {
		t.Errorf("%d ids of two events", len(ids))
	}
}

// TestAWrongTrustFileMakesNothing: the directory can be used once the file is mended; no keys lie in it whose passphrase nobody was told.
func TestAWrongTrustFileMakesNothing(t *testing.T) {
	dir := t.TempDir()
	c := DefaultConfig()
	c.TrustDomain, c.Names = "ward.example", []string{"localhost"}
	o := InitOptions{Dir: filepath.Join(dir, "s"), Config: c, Passphrase: keys.NewPassphrase(), Operator: "operator"}
	noPEM := filepath.Join(dir, "vendor.pem")
	if err := os.WriteFile(noPEM, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{noPEM, filepath.Join(dir, "absent.pem")} {
		o.EKTrust = []string{file}
		if err := Init(t.Context(), o); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
		if _, err := os.Stat(o.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something was made: %v", file, err)
		}
	}
	o.EKTrust = nil
	if err := Init(t.Context(), o); err != nil {
		t.Error(err)
	}
}
