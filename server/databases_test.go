package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/recording"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
)

// TestRecordedDatabases: the database that a server of an agent's day left behind is brought to the present schema behind a copy, and
// shows the same readings; and the server of that day would still open the copy. One that has the present schema is left as it is.
func TestRecordedDatabases(t *testing.T) {
	newest := make(sqldb.Schema)
	for _, m := range migrations() {
		newest[m.Domain] = max(newest[m.Domain], m.Version)
	}
	older := 0
	for _, dir := range recordings(t) {
		rec, err := recording.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		database, err := recording.Read(dir, recording.Database)
		if err != nil {
			t.Fatal(err)
		}
		if schema(t, database) != newest.String() {
			older++
		}
		for name, database := range map[string][]byte{"recorded": database, "present": upgraded(t, database)} {
			t.Run(filepath.Base(dir)+"/"+name, func(t *testing.T) {
				t.Parallel()
				r := newReplay(t, rec, database)
				r.expect(r.reader())
				if err := r.db.Check(t.Context()); err != nil {
					t.Error(err)
				}
				gs, err := r.registry.List(t.Context())
				if err != nil || len(gs) != 1 || gs[0].ID != rec.Gateway || gs[0].Ward != "w" || gs[0].State != registry.Active {
					t.Errorf("%+v, %v", gs, err)
				}
				r.expectUpgrade(schema(t, database), newest.String())
				if agents, err := r.agents(t.Context()); err != nil || agents[rec.Gateway] == "" || !strings.Contains(rec.Agent, agents[rec.Gateway]) {
					t.Errorf("agents: %v, %v; recorded: %s", agents, err, rec.Agent)
				}
			})
		}
	}
	if older == 0 {
		t.Error("each recorded database has the present schema; expected one that has not")
	}
}

// expectUpgrade: of a database with the schema have there is one copy and one event that names it; of one with the schema newest, neither.
func (r *replay) expectUpgrade(have, newest string) {
	r.t.Helper()
	copies, err := sqldb.Copies(databaseFile(r.dir))
	if err != nil {
		r.t.Fatal(err)
	}
	r.events(audit.AccessIssued) // of the reader, behind that of an upgrade in the outbox
	events := r.journaled(audit.DatabaseUpgraded)
	if have == newest {
		if len(copies) != 0 || len(events) != 0 {
			r.t.Errorf("%+v, %+v; expected no copy and no event of a schema that is present", copies, events)
		}
		return
	}
	if len(copies) != 1 || len(events) != 1 {
		r.t.Fatalf("%+v, %+v; expected one copy and one event", copies, events)
	}
	if d := events[0].Detail; d["copy"] != filepath.Base(copies[0].Path) || d["from"] != have || d["to"] != newest {
		r.t.Errorf("%v; expected from %s to %s, and the copy %s", d, have, newest, copies[0].Path)
	}
	before, err := os.ReadFile(copies[0].Path)
	if err != nil {
		r.t.Fatal(err)
	}
	if got := schema(r.t, before); got != have {
		r.t.Errorf("the copy has %s, expected %s", got, have)
	}
}

// schema is that of a database.
func schema(t *testing.T, database []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wardlink.db")
	if err := os.WriteFile(path, database, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.OpenBeside(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query(t.Context(), "SELECT domain, version FROM schema_versions")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	have := make(sqldb.Schema)
	for rows.Next() {
		var domain string
		var version int
		if err := rows.Scan(&domain, &version); err != nil {
			t.Fatal(err)
		}
		have[domain] = version
	}
	if err := rows.Err(); err != nil || len(have) == 0 {
		t.Fatalf("%v, %v", have, err)
	}
	return have.String()
}

// upgraded is a database after it was opened by this program.
func upgraded(t *testing.T, database []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wardlink.db")
	if err := os.WriteFile(path, database, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(path, migrations()...)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	present, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return present
}

// events are the journal's of a type; it waits for one.
func (r *replay) events(kind audit.Type) (out []audit.Event) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); len(out) == 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		out = r.journaled(kind)
	}
	return out
}

// journaled are the journal's events of a type until now.
func (r *replay) journaled(kind audit.Type) (out []audit.Event) {
	r.t.Helper()
	entries, err := r.journal.Read(1, 4096)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		if ev, err := audit.DecodeEvent(e.Head); err == nil && ev.Type == kind {
			out = append(out, ev)
		}
	}
	return out
}
