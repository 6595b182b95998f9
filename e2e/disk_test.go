package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/internal/child"
	"wardlink/internal/mounttest"
	"wardlink/server/sqldb"
)

// newest is the journal file that is being written.
func (w *ward) newest() string {
	files, err := filepath.Glob(filepath.Join(w.server(), "journal", "*.seg"))
	if err != nil || len(files) == 0 {
		all, _ := os.ReadDir(filepath.Join(w.server(), "journal"))
		w.Fatalf("no journal file among %v: %v", all, err)
	}
	return slices.Max(files)
}

// TestFullDisks fills the server's disks, the journal's, the database's, the log's. Full means refuse: what cannot be journaled is neither
// acknowledged nor shown; what is journaled waits for the rest; nothing ends, and everything goes on by itself once there is room.
func TestFullDisks(t *testing.T) {
	t.Parallel()
	if !inOwnMounts(t) {
		return
	}
	w := newWard(t, true)
	w.takes("M1")
	w.awaitObservations(1)
	w.awaitReady("ready")

	w.fullJournal()
	w.fullDatabase()
	w.fullLog()
	w.revokedWithoutAJournal()

	// In the end the log holds everything, once, and verifies.
	w.await("the log", func(ctx context.Context) (bool, error) {
		var s struct {
			Journal uint64 `json:"journal_seq"`
			Log     uint64 `json:"log_seq"`
		}
		w.ask(&s, "status")
		return s.Journal == s.Log, nil
	})
	w.proc.Stop()
	w.must("wardlink", "audit", "verify", "--dir", w.server())
	for _, c := range []struct {
		what string
		want int
	}{{"server.started", 3}, {"session.opened", 0}} {
		out := w.must("wardlink", "audit", "list", "--json", "--dir", w.server(), "--type", c.what)
		if n := bytes.Count(out, []byte(c.what)); c.want > 0 && n != c.want || n == 0 {
			t.Errorf("%d leaves of %s; expected %d:\n%s", n, c.what, c.want, out)
		}
	}
}

func (w *ward) fullJournal() {
	w.Helper()
	mounttest.Unreserve(w.T, w.newest())
	w.journal.fill()
	// Pages that former commits gave back take some more entries; each read is one.
	w.await("a read that cannot be journaled", func(context.Context) (bool, error) {
		status, _, _ := w.read()
		return status != http.StatusOK, nil
	})
	w.takes("M2")
	w.awaitReady("not ready: journal")
	w.refusesReads()
	w.refusesActs("cannot be journaled", "gateway", "list")
	w.stopsAt("journaled", "journal cannot be written")
	w.refusesActs("space", "access", "issue", "other", "--out", filepath.Join(w.hospital.dir, "other"))
	if n := w.backlog(context.Background()); n == 0 {
		w.Error("the gateway has no backlog: something was acknowledged without a journal")
	}

	// A start with a full disk is a start: the operators' port answers, and refuses the same.
	w.proc.Kill()
	w.hospital.run()
	w.awaitReady("not ready: journal")
	w.refusesReads()
	// The gateway's waits double: 3 s see a handful of attempts at most.
	before := w.lines("a gateway is turned away")
	time.Sleep(3 * time.Second)
	if n := w.lines("a gateway is turned away") - before; n > 10 {
		w.Errorf("%d sessions in 3 s at a full journal", n)
	}
	if n := w.lines("the journal cannot be written"); n > 20 {
		w.Errorf("the log says %d times that the journal cannot be written", n)
	}
	// Room, but a file system that takes no writes: the same.
	w.journal.Closed()
	w.journal.free()
	w.awaitReady("not ready: journal")
	w.refusesReads()
	w.journal.Opened()
	w.awaitReady("ready")
	w.awaitObservations(2)
}

func (w *ward) fullDatabase() {
	w.Helper()
	w.database.fill()
	w.takes("M3")
	w.awaitDelivered() // the journal is the first word
	w.awaitReady("not ready: records")
	w.stopsAt("opened", "does not open batches")
	w.refusesActs("the disk is full", "access", "issue", "other", "--out", filepath.Join(w.hospital.dir, "other"))
	if status, count, outcome := w.read(); status != http.StatusOK || count != 2 {
		w.Errorf("FHIR answers %d, %d observations, %q; expected what the database has", status, count, outcome)
	}
	w.proc.Kill()
	w.hospital.run()
	w.awaitReady("not ready: records")
	w.database.free()
	w.awaitReady("ready")
	w.awaitObservations(3)
}

func (w *ward) fullLog() {
	w.Helper()
	w.log.fill()
	w.takes("M4")
	w.awaitObservations(4)
	w.awaitReady("not ready: log")
	if err := w.proc.Died(); err != nil {
		w.Fatal(err)
	}
	w.log.free()
	w.awaitReady("ready")
}

// revokedWithoutAJournal: a gateway can be cut off while nothing can be journaled; its event follows.
func (w *ward) revokedWithoutAJournal() {
	w.Helper()
	sessions := func(want int) {
		w.Helper()
		w.await("sessions", func(context.Context) (bool, error) {
			var s struct {
				Sessions int `json:"sessions"`
			}
			w.ask(&s, "status")
			return s.Sessions == want, nil
		})
	}
	sessions(1)
	// The agent must not end the session itself by publishing something that cannot be journaled.
	status, err := w.box.status(context.Background())
	if err != nil {
		w.Fatal(err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGSTOP); err != nil {
		w.Fatal(err)
	}
	mounttest.Unreserve(w.T, w.newest())
	w.journal.fill()
	w.await("a read that cannot be journaled", func(context.Context) (bool, error) {
		status, _, _ := w.read()
		return status != http.StatusOK, nil
	})
	sessions(1)
	began := time.Now()
	out, err := child.Output(context.Background(), program("wardlink"), "--operator", w.operator(), "--json", "gateway", "revoke", "icu-7", "--reason", "stolen")
	if err != nil || !bytes.Contains(out, []byte(`"journaled": false`)) {
		w.Errorf("revoke: %s, %v; expected it done, and its event to follow", out, err)
	}
	sessions(0)
	w.Logf("the session was cut %v after the command began", time.Since(began).Round(time.Millisecond))
	if err := syscall.Kill(status.PID, syscall.SIGCONT); err != nil {
		w.Fatal(err)
	}
	w.journal.free()
	w.awaitReady("ready")
	w.await("the revocation's event", func(ctx context.Context) (bool, error) {
		out, err := child.Output(ctx, program("wardlink"), "audit", "list", "--json", "--dir", w.server(), "--type", "gateway.revoked")
		return bytes.Count(out, []byte("gateway.revoked")) == 1, err
	})
}

// TestLockedDatabase: another process holds the database's write lock, for longer than the server waits for it once. Ingest goes on, since
// the journal is the first word; records wait and catch up; acts wait a bounded time and say why.
func TestLockedDatabase(t *testing.T) {
	t.Parallel()
	w := newWard(t, false)
	w.takes("M1")
	w.awaitObservations(1)
	other, err := sqldb.OpenBeside(filepath.Join(w.server(), "wardlink.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	locked, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- other.Write(context.Background(), func(*sql.Tx) error {
			close(locked)
			<-release
			return nil
		})
	}()
	<-locked
	w.takes("M2")
	w.awaitDelivered()
	// Acts that come together wait together, not one after the other.
	began := time.Now()
	var acts errgroup.Group
	for i := range 4 {
		acts.Go(func() error {
			w.refusesActs("another process holds it locked", "access", "issue", fmt.Sprintf("other%d", i), "--out", filepath.Join(w.hospital.dir, fmt.Sprintf("other%d", i)))
			return nil
		})
	}
	_ = acts.Wait()
	if waited := time.Since(began); waited > 25*time.Second {
		t.Errorf("acts waited %v for a locked database", waited)
	}
	if status, count, outcome := w.read(); status != http.StatusOK || count != 1 {
		t.Errorf("FHIR answers %d, %d observations, %q; expected what the database has", status, count, outcome)
	}
	w.awaitReady("not ready: records")
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.awaitReady("ready")
	w.awaitObservations(2)
}
