package registry_test

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/internal/spiffe"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// badge is a certificate of a day from now on.
func (f *fixture) badge(serial string) registry.IdentityCertificate {
	return registry.IdentityCertificate{Serial: serial, SPKI: ek(serial), NotBefore: f.clock, NotAfter: f.clock.Add(24 * time.Hour)}
}

// enter makes an identity with one certificate.
func (f *fixture) enter(t *testing.T, i registry.Identity, serial string) {
	t.Helper()
	if err := f.Enter(f.ctx, operator, "192.0.2.1:1", i); err != nil {
		t.Fatal(err)
	}
	if err := f.Certify(f.ctx, operator, "192.0.2.1:1", i.Kind, i.Name, "", f.badge(serial)); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) let(kind spiffe.Kind, name, serial string) error {
	_, err := f.Authorise(f.ctx, kind, name, registry.IdentityCertificate{Serial: serial, SPKI: ek(serial)})
	return err
}

func admin(name string) registry.Identity {
	return registry.Identity{Kind: spiffe.Operator, Name: name, Role: registry.Admin}
}

// TestAuthorise: who is let in, and who is not, each by one thing that is different.
func TestAuthorise(t *testing.T) {
	f := setup(t, 0)
	f.enter(t, registry.Identity{Kind: spiffe.Access, Name: "ehr", Owner: "Clinical IT", Scope: registry.Scope{Wards: []string{"ICU 3"}}}, "0a")
	got, err := f.Authorise(f.ctx, spiffe.Access, "ehr", registry.IdentityCertificate{Serial: "0a", SPKI: ek("0a")})
	if err != nil || got.Owner != "Clinical IT" || got.Scope.String() != "wards ICU 3: read, search" || got.Certificate.Rotated() || got.Creator != operator.ID {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		kind        spiffe.Kind
		who, serial string
		key         [32]byte
		later       time.Duration
	}{
		"a serial that nobody entered": {spiffe.Access, "ehr", "0b", ek("0a"), 0},
		"another kind":                 {spiffe.Operator, "ehr", "0a", ek("0a"), 0},
		"another name":                 {spiffe.Access, "ehr-2", "0a", ek("0a"), 0},
		"another key":                  {spiffe.Access, "ehr", "0a", ek("0b"), 0},
		"after its end":                {spiffe.Access, "ehr", "0a", ek("0a"), 24 * time.Hour},
	} {
		now := f.clock
		f.clock = f.clock.Add(c.later)
		_, err := f.Authorise(f.ctx, c.kind, c.who, registry.IdentityCertificate{Serial: c.serial, SPKI: c.key})
		f.clock = now
		var ended *registry.IdentityError
		if !errors.Is(err, registry.ErrUnknown) && (c.later == 0 || !errors.As(err, &ended) || !errors.Is(err, registry.ErrNotActive)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStatesOfIdentities: what is taken away is gone with the commit, revoked is for ever, and each act is an event.
func TestStatesOfIdentities(t *testing.T) {
	f := setup(t, 0)
	f.enter(t, registry.Identity{Kind: spiffe.Access, Name: "ehr"}, "0a")
	set := func(to registry.State) (bool, error) {
		_, again, err := f.SetState(f.ctx, operator, "", spiffe.Access, "ehr", to, "because")
		return again, err
	}
	for i, step := range []struct {
		to       registry.State
		again    bool
		conflict bool
		in       bool
	}{
		{registry.Active, true, false, true},
		{registry.Suspended, false, false, false},
		{registry.Suspended, true, false, false},
		{registry.Active, false, false, true},
		{registry.Revoked, false, false, false},
		{registry.Revoked, true, false, false},
		{registry.Active, false, true, false},
		{registry.Suspended, false, true, false},
	} {
		again, err := set(step.to)
		if again != step.again || errors.Is(err, registry.ErrConflict) != step.conflict || !step.conflict && err != nil {
			t.Errorf("%d, to %s: again %t, %v", i, step.to, again, err)
		}
		if err := f.let(spiffe.Access, "ehr", "0a"); (err == nil) != step.in || err != nil && !strings.Contains(err.Error(), "because") {
			t.Errorf("%d, %s: let in: %v", i, step.to, err)
		}
	}
	if err := f.Certify(f.ctx, operator, "", spiffe.Access, "ehr", "", f.badge("0b")); !errors.Is(err, registry.ErrNotActive) {
		t.Errorf("a certificate for a revoked account: %v", err)
	}
	if err := f.Enter(f.ctx, operator, "", registry.Identity{Kind: spiffe.Access, Name: "ehr"}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("the name of a revoked account again: %v", err)
	}
	if _, _, err := f.SetState(f.ctx, operator, "", spiffe.Access, "nobody", registry.Revoked, "because"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("nobody: %v", err)
	}
	if _, _, err := f.SetState(f.ctx, operator, "", spiffe.Access, "ehr", registry.Revoked, " "); err == nil {
		t.Error("revoked for no reason")
	}
	want := []string{"identity.created access/ehr success", "access.issued ehr success", "identity.resumed access/ehr success", "identity.suspended access/ehr success",
		"identity.suspended access/ehr success", "identity.resumed access/ehr success", "identity.revoked access/ehr success", "identity.revoked access/ehr success"}
	if got := f.journal.Lines(t); !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
}

// TestRotation: the old certificates end after the overlap and not before, and the new one stays.
func TestRotation(t *testing.T) {
	f := setup(t, 0)
	f.enter(t, registry.Identity{Kind: spiffe.Access, Name: "ehr"}, "0a")
	for _, overlap := range []time.Duration{-time.Second, registry.MaxOverlap + 1} {
		if _, _, err := f.Rotate(f.ctx, operator, "", spiffe.Access, "ehr", "leaked", overlap); err == nil {
			t.Errorf("overlap %s", overlap)
		}
	}
	end, n, err := f.Rotate(f.ctx, operator, "", spiffe.Access, "ehr", "leaked", time.Hour)
	if err != nil || n != 1 || !end.Equal(f.clock.Add(time.Hour)) {
		t.Fatal(end, n, err)
	}
	old, err := f.Authorise(f.ctx, spiffe.Access, "ehr", registry.IdentityCertificate{Serial: "0a", SPKI: ek("0a")})
	if err != nil || !old.Certificate.Rotated() {
		t.Fatalf("within the overlap: %+v, %v", old.Certificate, err)
	}
	if err := f.Certify(f.ctx, operator, "", spiffe.Access, "ehr", "0a", f.badge("0b")); err != nil {
		t.Fatal(err)
	}
	f.clock = f.clock.Add(time.Hour)
	if err := f.let(spiffe.Access, "ehr", "0a"); !errors.Is(err, registry.ErrNotActive) {
		t.Errorf("the old one after the overlap: %v", err)
	}
	if err := f.let(spiffe.Access, "ehr", "0b"); err != nil {
		t.Errorf("the new one: %v", err)
	}
}

// TestCertificatesAreBounded: however often an identity is certified, a few of its certificates count, the one that is in use always among them.
func TestCertificatesAreBounded(t *testing.T) {
	f := setup(t, 0)
	f.enter(t, registry.Identity{Kind: spiffe.Access, Name: "ehr"}, "in-use")
	for i := range 40 {
		f.clock = f.clock.Add(3 * time.Minute)
		if err := f.Certify(f.ctx, operator, "", spiffe.Access, "ehr", "in-use", f.badge(fmt.Sprint("n", i))); err != nil {
			t.Fatal(err)
		}
	}
	if i, err := f.IdentityOf(f.ctx, spiffe.Access, "ehr"); err != nil || i.Valid != 8 || i.Certificate.Serial != "n39" {
		t.Errorf("%+v, %v", i, err)
	}
	for serial, in := range map[string]bool{"in-use": true, "n39": true, "n34": true, "n30": false} {
		if err := f.let(spiffe.Access, "ehr", serial); (err == nil) != in {
			t.Errorf("%s: %v", serial, err)
		}
	}
	if err := f.Certify(f.ctx, operator, "", spiffe.Access, "ehr", "", f.badge("n39")); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("a serial twice: %v", err)
	}
	f.clock = f.clock.Add(200 * 24 * time.Hour)
	if err := f.Certify(f.ctx, operator, "", spiffe.Access, "ehr", "", f.badge("late")); err != nil {
		t.Fatal(err)
	}
	if err := f.let(spiffe.Access, "ehr", "n38"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("a certificate of last year is still kept: %v", err)
	}
}

// TestRenewalsAreHeldBack: by a certificate that was rotated out there is none, however late the answer comes, and by a good one so many an hour.
func TestRenewalsAreHeldBack(t *testing.T) {
	f := setup(t, 0)
	f.enter(t, registry.Identity{Kind: spiffe.Access, Name: "ehr"}, "stolen")
	renew := func(shown, serial string) error {
		return f.Certify(f.ctx, operator, "", spiffe.Access, "ehr", shown, f.badge(serial))
	}
	if err := renew("never-issued", "x0"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("by a certificate that is not in the registry: %v", err)
	}
	for i := range 40 {
		if err := renew("stolen", fmt.Sprint("n", i)); (err == nil) != (i < 29) || err != nil && !errors.Is(err, registry.ErrConflict) {
			t.Fatalf("renewal %d within an hour: %v", i+1, err)
		}
	}
	f.clock = f.clock.Add(time.Hour)
	if err := renew("stolen", "later"); err != nil {
		t.Errorf("an hour later: %v", err)
	}
	if _, _, err := f.Rotate(f.ctx, operator, "", spiffe.Access, "ehr", "stolen", 0); err != nil {
		t.Fatal(err)
	}
	if err := renew("stolen", "thief"); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("by a certificate that was rotated out: %v", err)
	}
}

// TestTheLastAdminStays: whoever could undo it is not taken away by a slip.
func TestTheLastAdminStays(t *testing.T) {
	f := setup(t, 0)
	f.enter(t, admin("ann"), "0a")
	f.enter(t, registry.Identity{Kind: spiffe.Operator, Name: "vic", Role: registry.Viewer}, "0b")
	view := func(i *registry.Identity) { i.Role = registry.Viewer }
	_, err := f.Change(f.ctx, operator, "", spiffe.Operator, "ann", view)
	_, _, err2 := f.SetState(f.ctx, operator, "", spiffe.Operator, "ann", registry.Suspended, "slip")
	if !errors.Is(err, registry.ErrConflict) || !errors.Is(err2, registry.ErrConflict) || !strings.Contains(err.Error(), "last admin") {
		t.Fatal(err, err2)
	}
	f.enter(t, admin("bob"), "0c")
	if i, err := f.Change(f.ctx, operator, "", spiffe.Operator, "ann", view); err != nil || i.Role != registry.Viewer {
		t.Error(i, err)
	}
	if _, _, err := f.SetState(f.ctx, operator, "", spiffe.Operator, "bob", registry.Revoked, "slip"); !errors.Is(err, registry.ErrConflict) {
		t.Error(err)
	}
	if _, err := f.Change(f.ctx, operator, "", spiffe.Operator, "vic", func(i *registry.Identity) { i.Role = "root" }); err == nil {
		t.Error("an unknown role was taken")
	}
	if _, err := f.Change(f.ctx, operator, "", spiffe.Operator, "vic", func(i *registry.Identity) { i.Scope = registry.Scope{All: true} }); err == nil {
		t.Error("an operator got a scope")
	}
}

// TestUses: a use is written later, in one go, and survives a database that could not be written.
func TestUses(t *testing.T) {
	f := setup(t, 0)
	f.enter(t, registry.Identity{Kind: spiffe.Access, Name: "ehr"}, "0a")
	i, err := f.IdentityOf(f.ctx, spiffe.Access, "ehr")
	if err != nil || !i.Used.IsZero() {
		t.Fatal(i.Used, err)
	}
	f.clock = f.clock.Add(time.Minute)
	f.Use(i, "read Observation "+strings.Repeat("ü", 100))
	at := f.clock
	ended, cancel := contextEnded(f)
	cancel()
	if err := f.WriteUses(ended); err == nil {
		t.Fatal("written under a context that has ended")
	}
	f.clock = f.clock.Add(time.Minute)
	if err := f.WriteUses(f.ctx); err != nil {
		t.Fatal(err)
	}
	if i, err = f.IdentityOf(f.ctx, spiffe.Access, "ehr"); err != nil || !i.Used.Equal(at) || !strings.HasPrefix(i.UsedFor, "read Observation") || len(i.UsedFor) > 100 {
		t.Error(i.Used, i.UsedFor, err)
	}
}

// TestFormerIdentitiesKeepWhatTheyHad: certificates that were issued before identities were in the registry go on, and it shows what they may do.
func TestFormerIdentitiesKeepWhatTheyHad(t *testing.T) {
	all := append(registry.Migrations(), sqldb.OutboxMigrations()...)
	former := slices.DeleteFunc(slices.Clone(all), func(m sqldb.Migration) bool { return m.Domain == "registry_identities" })
	path := sqldbtest.Path(t)
	if sqldbtest.Postgres(t) {
		path = sqldbtest.Filled(t, former...)
	} else if err := sqldb.Create(path, former...); err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(path, former...)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{journal: &sqldbtest.Journal{}, clock: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), ctx: t.Context()}
	now, end, key := f.clock.UnixMilli(), f.clock.Add(time.Hour).UnixMilli(), ek("0a")
	err = db.Write(f.ctx, func(tx *sql.Tx) error {
		_, err1 := tx.Exec("INSERT INTO access (serial, name, spki, not_after, added) VALUES ('0a', 'ehr', $1, $2, $3), ('09', 'ehr', $1, $4, $3)", key[:], end, now, end-10)
		_, err2 := tx.Exec("INSERT INTO operators (serial, name, not_before, not_after) VALUES ('0b', 'ann', $1, $2)", now, end)
		return errors.Join(err1, err2)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	db = sqldbtest.Open(t, path, all...)
	if f.outbox, err = sqldb.NewOutbox(db, f.journal, nil); err != nil {
		t.Fatal(err)
	}
	if f.Registry, err = registry.New(registry.Config{DB: db, Outbox: f.outbox, Now: func() time.Time { return f.clock }}); err != nil {
		t.Fatal(err)
	}
	for _, serial := range []string{"0a", "09"} {
		i, err := f.Authorise(f.ctx, spiffe.Access, "ehr", registry.IdentityCertificate{Serial: serial, SPKI: key})
		if err != nil || i.Scope.String() != "all: read, search, waveforms" || i.Scope.Limit() != "" {
			t.Errorf("%s: %+v, %v", serial, i, err)
		}
	}
	if i, err := f.Authorise(f.ctx, spiffe.Operator, "ann", registry.IdentityCertificate{Serial: "0b", SPKI: key}); err != nil || i.Role != registry.Admin {
		t.Errorf("%+v, %v", i, err)
	}
	list, err := f.Identities(f.ctx)
	if err != nil || len(list) != 2 || list[0].Certificate.Serial != "0a" || list[0].Valid != 2 || list[1].Name != "ann" {
		t.Errorf("%+v, %v", list, err)
	}
}
