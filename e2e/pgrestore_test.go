package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
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

// TestRestoreOnPostgres loses directory and database, and brings both back. Halves of two moments are refused, whichever is the newer. Of halves of one
// moment the log ends and the next begins, whoever is killed over it, and an auditor's old checkpoints hold or say what is lost; the gateway, which was
// shown a longer log, doubts it before that and not behind; and what came after the backup is a gap until gateways are asked, and then comes again, once.
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
		h.showLonger()
	}
	h.back("new")

	h.put("new", "old")
	h.refuses("the journal ends before")
	h.put("old", "new")
	h.refuses("it is a copy or an older state")
	if wholeRestore {
		h.put("old", "old")
		h.goesOnInDoubt()
	}
	h.put("old", "old")
	h.succeeds()
	h.run()
	if wholeRestore {
		h.goesOn()
	}
	h.proc.Stop()
	h.audited()
}

// showLonger has the log grow beyond what a restored server's does in its first moments, and the gateway see that.
func (h *halves) showLonger() {
	h.Helper()
	for range 30 {
		h.must("wardlink", "--operator", h.operator(), "audit", "list")
	}
	h.proc.Stop()
	h.run()
	size := h.leaves(h.server())
	h.await("a look at the longer log", func(context.Context) (bool, error) { return h.box.whole().Log.Size >= size, nil })
}

// leaves are those of the checkpoint in a server's directory.
func (h *halves) leaves(dir string) uint64 {
	h.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "log", audit.CheckpointFile))
	if err != nil {
		h.Fatal(err)
	}
	cp, err := audit.UnverifiedCheckpoint(text)
	if err != nil {
		h.Fatal(err)
	}
	return cp.Size
}

// account waits until the gateway's account of vitals says so.
func (h *halves) account(gap int64, journaled uint64) {
	h.Helper()
	h.await("the account", func(context.Context) (bool, error) {
		v, ok := lane(h.accounted(h.T, "icu-7"), "vitals")
		return ok && v.Difference == gap && v.Journaled == journaled && v.Stored == journaled, nil
	})
}

// goesOnInDoubt asserts, of a server that was put back without M3 and whose log goes on: what was there before is there, once; M3 is a gap that the
// account names, until the gateway is asked; and the gateway says of the log that it was put back.
func (h *halves) goesOnInDoubt() {
	h.Helper()
	h.run()
	// First the doubt: each look at what is stored is an act, and the log must not have grown past what the gateway was shown before it connects.
	h.await("the gateway's doubt", func(context.Context) (bool, error) {
		return strings.Contains(h.box.whole().Log.Doubt, "it was put back"), nil
	})
	h.awaitObservations(2)
	h.account(1, 2)
	h.must("wardlink-server", "resend", "--dir", h.server())
	h.await("the event", func(context.Context) (bool, error) { return len(h.audit("--type", "resend.asked")) == 1, nil })
	h.box.agent.Stop() // a gateway is asked as it connects
	h.box.start()
	h.awaitObservations(3)
	h.account(0, 3)
	h.proc.Stop()
}

// restored is what the command says.
type restored struct {
	Log    string `json:"log"`
	Leaves uint64 `json:"former_leaves"`
	Done   bool   `json:"done"`
	Before bool   `json:"before"`
}

func (h *halves) restored(args ...string) (r restored) {
	h.Helper()
	out := h.must("wardlink-server", append([]string{"restored", "--json", "--dir", h.server()}, args...)...)
	if err := json.Unmarshal(out, &r); err != nil {
		h.Fatalf("%v\n%s", err, out)
	}
	return r
}

// succeeds ends the log and begins the next: first as a dry run, then killed twice, as soon as it has begun and as soon as it has decided, then to
// its end.
func (h *halves) succeeds() {
	h.Helper()
	was := h.leaves(h.server())
	if r := h.restored("--dry-run"); r.Done || r.Log != "ward.example/log/2" || r.Leaves != was || h.leaves(h.server()) != was {
		h.Errorf("a dry run: %+v", r)
	}
	mark := filepath.Join(h.server(), "SUCCEEDING")
	kills := []int64{0, 1} // bytes that its mark has then
	if !wholeRestore {
		kills = nil // server.TestRestored ends it at each step
	}
	for _, size := range kills {
		cmd := exec.Command(program("wardlink-server"), "restored", "--dir", h.server())
		if err := cmd.Start(); err != nil {
			h.Fatal(err)
		}
		over := make(chan struct{})
		go func() { _ = cmd.Wait(); close(over) }()
		for {
			info, err := os.Stat(mark)
			if err == nil && info.Size() >= size {
				break
			}
			select {
			case <-over: // it was faster than the look
			case <-time.After(time.Millisecond):
				continue
			}
			break
		}
		_ = cmd.Process.Kill()
		<-over
		if _, err := os.Stat(mark); err == nil {
			h.refuses("did not come to its end")
		}
	}
	r := h.restored()
	if r.Log != "ward.example/log/2" || !r.Done && !r.Before {
		h.Errorf("%+v", r)
	}
	if left, err := filepath.Glob(mark); err != nil || len(left) > 0 {
		h.Errorf("its mark stays: %v", err)
	}
	if again := h.restored(); !again.Before {
		h.Errorf("once more: %+v", again)
	}
}

// goesOn asserts, of a server whose next log has begun: the gateway brings M3 again by itself, beside what is new, and follows the log.
func (h *halves) goesOn() {
	h.Helper()
	h.awaitObservations(3)
	h.takes("M4")
	h.awaitObservations(4)
	h.account(0, 4)
	h.await("the gateway's word on the next log", func(context.Context) (bool, error) {
		log := h.box.whole().Log
		return log.Doubt == "" && log.Origin == "ward.example/log/2", nil
	})
}

// audited asserts what an auditor finds: both logs and that they join, with a checkpoint that was kept of the former one before the backup; one that was
// kept after it has leaves that are lost.
func (h *halves) audited() {
	h.Helper()
	older := func(backup string) string { return filepath.Join(h.copied(backup), "log", audit.CheckpointFile) }
	h.must("wardlink", "audit", "verify", "--dir", h.server(), "--older", older("old"))
	_, err := child.Output(h.Context(), program("wardlink"), "audit", "verify", "--dir", h.server(), "--older", older("new"))
	for _, want := range []string{"the log was put back", "log/1 ended with", "are lost"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			h.Errorf("a checkpoint over leaves that are lost: %v; expected %q", err, want)
		}
	}
}
