package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wardlink/internal/build"
	"wardlink/internal/mounttest"
)

// The test binary runs itself as a child that dies at a step of an upgrade.
func TestMain(m *testing.M) {
	if path := os.Getenv("UPGRADE_PATH"); path != "" {
		at := os.Getenv("UPGRADE_DIES_AT")
		db, err := OpenConfig(Config{Path: path, Migrations: newWards, Upgraded: note, step: func(step string) {
			if step == at {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}})
		if err == nil {
			err = db.Close()
		}
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
	os.Exit(m.Run())
}

var (
	oldWards = []Migration{
		{Domain: "wards", Version: 1, SQL: "CREATE TABLE wards (name TEXT NOT NULL PRIMARY KEY, notes TEXT NOT NULL)"},
	}
	newWards = append(slices.Clone(oldWards),
		Migration{Domain: "beds", Version: 1, SQL: "CREATE TABLE beds (ward TEXT NOT NULL REFERENCES wards (name))"},
		Migration{Domain: "wards", Version: 2, SQL: "ALTER TABLE wards ADD COLUMN floor INTEGER NOT NULL DEFAULT 0; UPDATE wards SET notes = notes || ' on floor 0'"},
		Migration{Domain: "wards", Version: 3, SQL: "CREATE TABLE upgrades (schema TEXT NOT NULL, copy TEXT NOT NULL)"},
	)
)

func note(tx *sql.Tx, u Upgrade) error {
	_, err := tx.Exec("INSERT INTO upgrades (schema, copy) VALUES ($1, $2)", u.From.String()+"; "+u.To.String(), u.Copy)
	return err
}

// oldDatabase makes a database of wards that an older program wrote.
func oldDatabase(t testing.TB, path string, wards int) {
	t.Helper()
	if err := Create(path, oldWards...); err != nil {
		t.Fatal(err)
	}
	db, err := Open(path, oldWards...)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Write(context.Background(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
			INSERT INTO wards (name, notes) SELECT 'ward ' || i, hex(zeroblob(500)) FROM n`, wards)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// wards reads what a database holds, whatever its schema, and checks it.
func wards(t testing.TB, path string) (schema string, count, upgraded int) {
	t.Helper()
	db, err := OpenBeside(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(db.Check(context.Background()), db.Close()); err != nil {
			t.Error(err)
		}
	}()
	have, err := versions(context.Background(), db.readers)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(context.Background(), "SELECT COUNT(*), SUM(notes LIKE '% on floor 0') FROM wards").Scan(&count, &upgraded); err != nil {
		t.Fatal(err)
	}
	return have.String(), count, upgraded
}

const (
	oldSchema = "wards 1"
	newSchema = "beds 1, wards 3"
)

func copies(t testing.TB, path string) []Copy {
	t.Helper()
	out, err := Copies(path)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUpgradeCopiesFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a ward%?#.db")
	oldDatabase(t, path, 1000)
	began := time.Now()
	var said []string
	for range 2 { // the second finds nothing to do
		db, err := OpenConfig(Config{Path: path, Migrations: newWards, Upgraded: note, Progress: func(doing string) { said = append(said, doing) }})
		if err != nil {
			t.Fatal(err)
		}
		var rows int
		var schema, copied string
		if err := db.QueryRow(context.Background(), "SELECT COUNT(*), schema, copy FROM upgrades").Scan(&rows, &schema, &copied); err != nil || rows != 1 || schema != oldSchema+"; "+newSchema {
			t.Errorf("%d upgrades, %q, %v", rows, schema, err)
		}
		got := copies(t, path)
		if len(got) != 1 || got[0].Path != copied || got[0].Version != build.Version || got[0].Made.Before(began.Add(-2*time.Second)) || got[0].Made.After(time.Now()) {
			t.Errorf("%+v, expected one copy %s", got, copied)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(said) != 5 || !strings.HasPrefix(said[0], "copying") || said[4] != "changing the database's schema: wards 3" {
		t.Errorf("said %q", said)
	}
	if schema, n, upgraded := wards(t, path); schema != newSchema || n != 1000 || upgraded != 1000 {
		t.Errorf("%s, %d wards, %d upgraded", schema, n, upgraded)
	}
	copied := copies(t, path)[0].Path
	if info, err := os.Stat(copied); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if info, err := os.Stat(CopiesDir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
	if names, _ := filepath.Glob(CopiesDir(path) + "/*"); len(names) != 1 {
		t.Errorf("left: %q", names)
	}
	// In the database's place the copy is the database, also for the older program.
	back := filepath.Join(t.TempDir(), "back.db")
	if err := os.Rename(copied, back); err != nil {
		t.Fatal(err)
	}
	old, err := Open(back, oldWards...)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if schema, n, upgraded := wards(t, back); schema != oldSchema || n != 1000 || upgraded != 0 {
		t.Errorf("%s, %d wards, %d upgraded", schema, n, upgraded)
	}
}

// TestUpgradeKilledAtEachStep kills the process at every step. What is left is the old schema or the new one, whole, and the next start
// ends in the new one with a copy of the old.
func TestUpgradeKilledAtEachStep(t *testing.T) {
	t.Parallel()
	var steps []string
	rehearsal := filepath.Join(t.TempDir(), "db")
	oldDatabase(t, rehearsal, 600)
	db, err := OpenConfig(Config{Path: rehearsal, Migrations: newWards, Upgraded: note, step: func(s string) { steps = append(steps, s) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if steps = slices.Compact(steps); len(steps) != 11 || steps[0] != "before the copy" || steps[len(steps)-1] != "committed" || !slices.Contains(steps, "some pages copied") {
		t.Fatalf("steps: %q", steps)
	}
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			oldDatabase(t, path, 600)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "UPGRADE_PATH="+path, "UPGRADE_DIES_AT="+step)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the child was not killed: %v\n%s", err, out)
			}
			want, upgraded := oldSchema, 0
			if step == "committed" {
				want, upgraded = newSchema, 600
			}
			if schema, n, u := wards(t, path); schema != want || n != 600 || u != upgraded {
				t.Fatalf("after the kill: %s, %d wards, %d upgraded; expected %s", schema, n, u, want)
			}
			for _, c := range copies(t, path) { // under a copy's name there is never half of one
				if err := verifyCopy(context.Background(), c.Path, Schema{"wards": 1}); err != nil {
					t.Errorf("%s: %v", c.Path, err)
				}
			}
			db, err := OpenConfig(Config{Path: path, Migrations: newWards, Upgraded: note})
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if schema, n, u := wards(t, path); schema != newSchema || n != 600 || u != 600 {
				t.Fatalf("after the next start: %s, %d wards, %d upgraded", schema, n, u)
			}
			got := copies(t, path)
			if len(got) == 0 || len(got) > copiesKept {
				t.Errorf("copies: %+v", got)
			}
			if left, _ := filepath.Glob(CopiesDir(path) + "/*making*"); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	oldDatabase(t, path, 10)
	db, err := OpenConfig(Config{Path: path, Migrations: newWards, Upgraded: note})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := copies(t, path)[0]
	for name, known := range map[string][]Migration{"version": newWards[:2], "domain": slices.DeleteFunc(slices.Clone(newWards), func(m Migration) bool { return m.Domain == "beds" })} {
		_, err := Open(path, known...)
		if !errors.Is(err, ErrNewer) {
			t.Fatalf("%s: %v", name, err)
		}
		for _, word := range []string{path, build.Version, "nothing was changed", copied.Path, copied.Version} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v does not say %q", name, err, word)
			}
		}
	}
	if _, err := OpenBeside(path, newWards[0]); !errors.Is(err, ErrNewer) {
		t.Errorf("beside: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the refused database was changed, or %v", err)
	}
	if err := os.RemoveAll(CopiesDir(path)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, newWards[:2]...); err == nil || !strings.Contains(err.Error(), "install the wardlink-server that ran last") {
		t.Errorf("without a copy: %v", err)
	}
}

// TestBesideChangesNoSchema: a command beside a server of the former version must not bring the server's tables away from under it.
func TestBesideChangesNoSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	oldDatabase(t, path, 10)
	if _, err := OpenBeside(path, newWards...); err == nil || !strings.Contains(err.Error(), "wardlink-server run") || errors.Is(err, ErrNewer) {
		t.Errorf("%v", err)
	}
	db, err := OpenBeside(path, oldWards...)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if schema, _, _ := wards(t, path); schema != oldSchema {
		t.Errorf("schema %s", schema)
	}
}

func TestCopiesAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	oldDatabase(t, path, 10)
	bad := append(slices.Clone(oldWards), Migration{Domain: "wards", Version: 2, SQL: "CREATE TABLE wards (again)"})
	if err := os.MkdirAll(CopiesDir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(CopiesDir(path), "mine.db") // not by a copy's name: an operator's own
	if err := os.WriteFile(mine, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := Open(path, bad...); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
			t.Fatal(err)
		}
	}
	if schema, n, _ := wards(t, path); schema != oldSchema || n != 10 {
		t.Errorf("%s, %d wards", schema, n)
	}
	got := copies(t, path)
	if len(got) != copiesKept || !got[0].Made.Before(got[1].Made) {
		t.Fatalf("copies: %+v", got)
	}
	db, err := Open(path, oldWards...)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.DropCopies(got[1].Made); err != nil {
		t.Fatal(err)
	}
	if left := copies(t, path); len(left) != 1 || left[0] != got[1] {
		t.Errorf("copies: %+v", left)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
}

// TestDamagedDatabaseIsNotUpgraded: a copy that does not hang together is none, and what is copied is what would be changed.
func TestDamagedDatabaseIsNotUpgraded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	oldDatabase(t, path, 1000)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 40*4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, newWards...); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
	if names, _ := os.ReadDir(CopiesDir(path)); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

// TestNoRoomForTheCopy: with too little room nothing is begun, and the error says how much is missing.
func TestNoRoomForTheCopy(t *testing.T) {
	if !mounttest.Inside(t) {
		return
	}
	path := filepath.Join(t.TempDir(), "db")
	oldDatabase(t, path, 600)
	mounttest.Mount(t, CopiesDir(path), "60m")
	_, err := Open(path, newWards...)
	if err == nil || !strings.Contains(err.Error(), CopiesDir(path)) || !strings.Contains(err.Error(), "free ") {
		t.Fatalf("%v", err)
	}
	if schema, n, upgraded := wards(t, path); schema != oldSchema || n != 600 || upgraded != 0 {
		t.Errorf("%s, %d wards, %d upgraded", schema, n, upgraded)
	}
	if names, _ := os.ReadDir(CopiesDir(path)); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

func TestCopyNames(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	if got := copies(t, path); got != nil {
		t.Errorf("%+v", got)
	}
	if err := os.Mkdir(CopiesDir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"before-0.2.0-20261127T083000Z.db": "0.2.0", "before-0.3.0-rc.1+5-20261127T083001Z.db": "0.3.0-rc.1+5"}
	for _, name := range append(slices.Collect(maps.Keys(want)), "before-0.2.0-20261327T083000Z.db", "before--20261127T083000Z.db", "before-1-20261127T083000Z.db-wal", "copy.making") {
		if err := os.WriteFile(filepath.Join(CopiesDir(path), name), nil, fs.FileMode(0o600)); err != nil {
			t.Fatal(err)
		}
	}
	got := copies(t, path)
	if len(got) != 2 || got[0].Version != "0.2.0" || got[1].Version != "0.3.0-rc.1+5" {
		t.Errorf("%+v", got)
	}
}

// A step is a part of its migration: what it writes is there with the schema, and when it fails neither is.
func TestStepsOfMigrations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wards.db")
	oldDatabase(t, path, 10)
	broken := errors.New("no such ward")
	fail := true
	migrations := append(slices.Clone(newWards), Migration{Domain: "wards", Version: 4, SQL: "CREATE TABLE floors (name TEXT NOT NULL)",
		Step: func(ctx context.Context, tx *sql.Tx, progress func(string)) error {
			progress("counting floors")
			if _, err := tx.ExecContext(ctx, "INSERT INTO floors (name) VALUES ('first')"); err != nil {
				return err
			}
			if fail {
				return broken
			}
			return nil
		}})
	if _, err := Open(path, migrations...); !errors.Is(err, broken) || !strings.Contains(err.Error(), "wards 4") {
		t.Fatalf("%v", err)
	}
	if schema, n, upgraded := wards(t, path); schema != oldSchema || n != 10 || upgraded != 0 {
		t.Errorf("%s, %d wards, %d upgraded", schema, n, upgraded)
	}
	fail = false
	var said []string
	db, err := OpenConfig(Config{Path: path, Migrations: migrations, Upgraded: note, Progress: func(doing string) { said = append(said, doing) }})
	if err != nil {
		t.Fatal(err)
	}
	var floor string
	if err := errors.Join(db.QueryRow(context.Background(), "SELECT name FROM floors").Scan(&floor), db.Close()); err != nil || floor != "first" {
		t.Errorf("%q %v", floor, err)
	}
	if !slices.Contains(said, "counting floors") {
		t.Errorf("%q", said)
	}
}
