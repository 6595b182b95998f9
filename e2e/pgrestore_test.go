package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/child"
	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
)

// halves are what a hospital on PostgreSQL is backed up as: a copy of the server's directory, and a dump of the database.
type halves struct {
	*ward
	pg *pgserver.Server
}

// tool runs a program of PostgreSQL's or of the system's as the operator of a hospital would.
func (h *halves) tool(name string, args ...string) {
	h.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		h.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (h *halves) postgres(name string, args ...string) {
	h.Helper()
	bin, err := pgserver.Binaries()
	if err != nil {
		h.Fatal(err)
	}
	h.tool(filepath.Join(bin, name), args...)
}

func (h *halves) copied(backup string) string { return filepath.Join(h.hospital.dir, backup) }
func (h *halves) dumped(backup string) string { return filepath.Join(h.hospital.dir, backup+".dump") }

// back makes a backup as docs/OPERATING.md says: nothing writes the log while directory and database are copied. The server is stopped then.
func (h *halves) back(backup string) {
	h.Helper()
	h.proc.Stop()
	h.tool("cp", "-a", h.server(), h.copied(backup))
	h.postgres("pg_dump", "--format=custom", "--file="+h.dumped(backup), h.pg.URL("wardlink", pgserver.Superuser))
}

// lost removes the directory, the database and its roles.
func (h *halves) lost() {
	h.Helper()
	if err := os.RemoveAll(h.server()); err != nil {
		h.Fatal(err)
	}
	h.exec("DROP DATABASE wardlink WITH (FORCE)", "DROP ROLE wardlink_ingest", "DROP ROLE wardlink")
}

func (h *halves) exec(statements ...string) {
	h.Helper()
	for _, q := range statements {
		if err := h.pg.Exec(h.Context(), "postgres", q); err != nil {
			h.Fatalf("%s: %v", q, err)
		}
	}
}

// put brings back a directory and a database, each of its backup. The caller's server does not run.
func (h *halves) put(directory, database string) {
	h.Helper()
	h.lost()
	h.tool("cp", "-a", h.copied(directory), h.server())
	h.exec("CREATE ROLE wardlink LOGIN CREATEROLE", "CREATE ROLE wardlink_ingest NOLOGIN", "CREATE DATABASE wardlink OWNER wardlink TEMPLATE template0")
	h.postgres("pg_restore", "--exit-on-error", "--dbname="+h.pg.URL("wardlink", pgserver.Superuser), h.dumped(database))
}

// refuses asserts that a server does not start on what was put back, and that it says why.
func (h *halves) refuses(why string) {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), time.Minute)
	defer cancel()
	_, err := child.Output(ctx, program("wardlink-server"), "run", "--dir", h.server())
	if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), why) {
		h.Errorf("a server on halves that are not of one moment: %v; expected it to end and to say %q", err, why)
	}
}

// wholeRestore has a gateway deliver before, between and after (make check); without it the server is alone, and the halves and their log are tried.
var wholeRestore = os.Getenv("WARDLINK_RESTORE") == "all"

// TestRestoreOnPostgres loses directory and database, and brings both back. Halves of two moments are refused, whichever is the newer; halves of one
// moment go on, the gateway without a hand, and what came after the backup is a gap until gateways are asked, and then comes again, once.
func TestRestoreOnPostgres(t *testing.T) {
	t.Parallel()
	h := &halves{pg: pgtest.Own(t, pgserver.Config{}), ward: &ward{hospital: placeHospital(t), T: t}}
	h.exec("CREATE ROLE wardlink LOGIN CREATEROLE", "CREATE DATABASE wardlink OWNER wardlink TEMPLATE template0")
	h.must("wardlink-server", "init", "--dir", h.server(), "--trust-domain", "ward.example", "--name", "localhost", "--name", "127.0.0.1", "--passphrase-file", h.passphrase(),
		"--gateways", h.gateways, "--hospital", h.ward.hospital.hospital, "--operators", h.operators, "--database", h.pg.URL("wardlink", "wardlink"))
	if wholeRestore {
		h.begin()
		h.box.deliverAs("icu-7")
		h.takes("M2")
		h.awaitObservations(2)
	} else {
		h.run()
	}
	h.back("old")
	h.run()
	if wholeRestore {
		h.takes("M3")
		h.awaitObservations(3)
		h.box.awaitIdle()
	}
	h.back("new")

	h.put("new", "old")
	h.refuses("the journal ends before")
	h.put("old", "new")
	h.refuses("it is a copy or an older state")
	h.put("old", "old")
	h.run()
	if wholeRestore {
		h.goesOn()
	}
	h.proc.Stop()
	h.must("wardlink", "audit", "verify", "--dir", h.server())
}

// goesOn asserts, of a server that was put back without M3: what was there before is there, once; M3 is a gap that the account names; and once
// gateways are asked it comes again, beside what is new.
func (h *halves) goesOn() {
	h.Helper()
	account := func(gap int64, journaled uint64) {
		h.await("the account", func(context.Context) (bool, error) {
			v, ok := lane(h.accounted(h.T, "icu-7"), "vitals")
			return ok && v.Difference == gap && v.Journaled == journaled && v.Stored == journaled, nil
		})
	}
	h.awaitObservations(2)
	account(1, 2)
	h.proc.Stop()
	h.asks()
	h.run()
	h.takes("M4")
	h.awaitObservations(4)
	account(0, 4)
}

// asks runs the statement of docs/OPERATING.md that has gateways asked for what a database lacks that was put back.
func (h *halves) asks() {
	h.Helper()
	text, err := os.ReadFile("../docs/OPERATING.md")
	if err != nil {
		h.Fatal(err)
	}
	_, statement, found := strings.Cut(string(text), "\nINSERT INTO restores ")
	statement, _, whole := strings.Cut(statement, ";\n")
	if !found || !whole {
		h.Fatal("docs/OPERATING.md has no statement that asks gateways again")
	}
	h.postgres("psql", "--set=ON_ERROR_STOP=1", "--command=INSERT INTO restores "+statement, h.pg.URL("wardlink", "wardlink"))
}
