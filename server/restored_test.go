package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/pgtest"
	"wardlink/server/sqldb"
	"wardlink/server/translog"
)

// shared is a hospital on PostgreSQL, which other tools than ours copy and put back.
type shared struct {
	*hospital
	url string
}

var copies atomic.Int64

func newShared(t *testing.T) *shared {
	t.Helper()
	s := &shared{url: pgtest.New(t), hospital: &hospital{t, filepath.Join(t.TempDir(), "hospital")}}
	c := DefaultConfig()
	c.TrustDomain, c.Names, c.Database = "ward.example", []string{"127.0.0.1"}, s.url
	for _, addr := range []*string{&c.Gateways, &c.Hospital, &c.Operators} {
		*addr = freeAddress(t)
	}
	if err := Init(t.Context(), InitOptions{Dir: s.dir, Config: c, Passphrase: backupPassphrase, Operator: "operator"}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *shared) database() string {
	u, err := url.Parse(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Trim(u.Path, "/")
}

// put makes a hospital of copies of one's directory and another's database, neither of which runs.
func put(t *testing.T, directory, database *shared) *shared {
	t.Helper()
	name := fmt.Sprintf("copy_%d", copies.Add(1))
	pgtest.Create(t, pgtest.Server(t), name, database.database())
	s := &shared{hospital: &hospital{t, filepath.Join(t.TempDir(), "hospital")}, url: strings.Replace(database.url, database.database(), name, 1)}
	if out, err := exec.Command("cp", "-a", directory.dir, s.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	path := filepath.Join(s.dir, ConfigFile)
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), directory.url) {
		t.Fatalf("%v: no %s in\n%s", err, directory.url, text)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), directory.url, s.url, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

// acts runs the server for so long that its log grows.
func (s *shared) acts() {
	s.t.Helper()
	_, size, err := translog.Position(logDir(s.dir))
	if err != nil {
		s.t.Fatal(err)
	}
	stop := s.run(slog.New(slog.DiscardHandler))
	s.logged(size + 1)
	stop()
}

func (s *shared) restored(o RestoredOptions) (RestoredResult, error) {
	o.Dir, o.patience = s.dir, max(o.patience, 2*time.Second)
	return Restored(s.t.Context(), o)
}

// ids are the acts of a log, in its order.
func (s *shared) ids(log string) (ids []audit.EventID) {
	s.t.Helper()
	for it, err := range audit.List(filepath.Join(s.dir, log), audit.Filter{Publishes: true}) {
		if err != nil {
			s.t.Fatal(err)
		}
		if it.Row != nil {
			ids = append(ids, it.Row.ID)
		} else {
			ids = append(ids, it.Event.ID)
		}
	}
	return ids
}

// succeeded asserts that log 2 verifies, begins where log 1 ended, and that the database was told so once; and gives its first leaf.
func (s *shared) succeeded(res RestoredResult) audit.Event {
	s.t.Helper()
	former, _ := s.verify("former/log-1", "former/log-1.pub")
	_, first := s.verify("log", "public/log.pub")
	logs, err := audit.FormerLogs(s.dir)
	if err != nil || len(logs) != 1 {
		s.t.Fatalf("%+v, %v", logs, err)
	}
	key, err := os.ReadFile(filepath.Join(s.dir, "public", "log.pub"))
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := audit.CheckSuccession(logDir(s.dir), strings.TrimSpace(string(key)), logs[0]); err != nil {
		s.t.Error(err)
	}
	if res.Former != "ward.example/log/1" || res.Log != "ward.example/log/2" || res.Leaves != former.Size || !res.Done {
		s.t.Errorf("%+v; log 1 has %d leaves", res, former.Size)
	}
	db, err := sqldb.OpenBeside(s.url, migrations()...)
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	var n, log int
	if err := db.QueryRow(s.t.Context(), "SELECT COUNT(*), MAX(log) FROM restores").Scan(&n, &log); err != nil || n != 1 || log != 2 {
		s.t.Errorf("%d restores, of log %d, %v", n, log, err)
	}
	return first
}

// nonces is how many generations of the CA's nonces the database knows.
func (s *shared) nonces() (n int) {
	s.t.Helper()
	db, err := sqldb.OpenBeside(s.url, migrations()...)
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(s.t.Context(), "SELECT COUNT(*) FROM ca_nonces").Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// refused asserts that a server does not start, and why.
func (s *shared) refused(why string) {
	s.t.Helper()
	srv, err := New(s.dir, slog.New(slog.DiscardHandler))
	if err == nil {
		_ = srv.close()
	}
	if err == nil || !strings.Contains(err.Error(), why) {
		s.t.Errorf("a server starts: %v; expected %q", err, why)
	}
}

var errKilled = errors.New("killed")

// TestRestored: whichever half of a hospital on PostgreSQL was put back, the next log takes what is in none, once, and an act of before is where it was.
func TestRestored(t *testing.T) {
	t.Parallel()
	h := newShared(t)
	h.acts()
	old := put(t, h, h)
	h.acts()

	t.Run("of one moment, ended at each step", func(t *testing.T) {
		s := put(t, old, old)
		if dry, err := s.restored(RestoredOptions{DryRun: true}); err != nil || dry.Done || dry.Apart != "" || dry.Log != "ward.example/log/2" || dry.Journal != dry.Cursor {
			t.Fatalf("a dry run: %+v, %v", dry, err)
		}
		before := s.ids("log")
		if s.nonces() == 0 {
			t.Error("no nonces are there to be forgotten")
		}
		for _, step := range []string{"sign", "make", "decide", "database", "former", "log", "key", "public", "end"} {
			_, err := s.restored(RestoredOptions{step: func(name string) error {
				if name == step {
					return errKilled
				}
				return nil
			}})
			decided := !slices.Contains([]string{"sign", "make", "decide"}, step)
			if !errors.Is(err, errKilled) || strings.Contains(err.Error(), "run the command again") != decided {
				t.Fatalf("at %s: %v", step, err)
			}
			if !decided { // as a kill leaves it, there
				if _, err := LoadConfig(s.dir); err != nil {
					t.Errorf("at %s: %v", step, err)
				}
				if err := os.WriteFile(filepath.Join(s.dir, succeedingFile), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s.refused("did not come to its end")
		}
		if _, err := s.restored(RestoredOptions{Log: 9}); err == nil || !strings.Contains(err.Error(), "has begun log ward.example/log/2") {
			t.Errorf("to be gone on with as another log: %v", err)
		}
		if dry, err := s.restored(RestoredOptions{DryRun: true}); err != nil || dry.Done || dry.Log != "ward.example/log/2" {
			t.Errorf("a dry run in its middle: %+v, %v", dry, err)
		}
		res, err := s.restored(RestoredOptions{})
		if err != nil || res.Before {
			t.Fatalf("%+v, %v", res, err)
		}
		s.succeeded(res)
		if n := s.nonces(); n != 0 {
			t.Errorf("%d nonces of before are good again", n)
		}
		if again, err := s.restored(RestoredOptions{}); err != nil || !again.Before || again.Log != res.Log || again.Generation != res.Generation {
			t.Errorf("once more: %+v, %v", again, err)
		}
		s.acts()
		if first := s.succeeded(res); first.Detail["generation"] != res.Generation || first.Detail["journal"] != fmt.Sprint(res.Journal) {
			t.Errorf("%+v", first)
		}
		if !slices.Equal(s.ids("former/log-1"), before) {
			t.Error("the former log has grown")
		}
		s.apart(1, nil)
		if third, err := s.restored(RestoredOptions{}); err != nil || third.Former != res.Log || third.Log != "ward.example/log/3" {
			t.Errorf("after another restore: %+v, %v", third, err)
		}
		s.acts()
	})
	t.Run("log behind", func(t *testing.T) {
		s := put(t, old, h)
		s.refused("older state")
		if _, err := s.restored(RestoredOptions{}); err == nil || !strings.Contains(err.Error(), "--apart") {
			t.Errorf("without a word: %v", err)
		}
		s.refused("older state")
		if dry, err := s.restored(RestoredOptions{DryRun: true}); err != nil || dry.Apart == "" || dry.Again() == 0 || dry.Ahead() {
			t.Errorf("a dry run: %+v, %v", dry, err)
		}
		res, err := s.restored(RestoredOptions{Apart: true})
		if err != nil || res.Again() == 0 {
			t.Fatalf("%+v, %v", res, err)
		}
		s.acts()
		s.succeeded(res)
		s.apart(1, h.ids("log"))
	})
	t.Run("log ahead", func(t *testing.T) {
		s := put(t, h, old)
		s.refused("the journal ends before")
		res, err := s.restored(RestoredOptions{Apart: true})
		if err != nil || !res.Ahead() || res.Again() != 0 {
			t.Fatalf("%+v, %v", res, err)
		}
		s.acts()
		s.succeeded(res)
		s.apart(1, h.ids("log"))
	})
	t.Run("of a database that was never its", func(t *testing.T) {
		other := newShared(t)
		other.acts()
		s := put(t, h, other)
		if _, err := s.restored(RestoredOptions{Apart: true}); !errors.Is(err, translog.ErrUnsound) {
			t.Errorf("another server's database: %v", err)
		}
	})
	t.Run("wrong use", func(t *testing.T) { h.wrongUse() })
}

// apart asserts that no act is in both logs, and that the wanted ones are in one of them.
func (s *shared) apart(former int, want []audit.EventID) {
	s.t.Helper()
	times := map[audit.EventID]int{}
	for _, id := range append(s.ids(fmt.Sprintf("former/log-%d", former)), s.ids("log")...) {
		if times[id]++; times[id] > 1 {
			s.t.Errorf("%s is in both logs", id)
		}
	}
	for _, id := range want {
		if times[id] != 1 {
			s.t.Errorf("%s is in neither log", id)
		}
	}
}

func (s *shared) wrongUse() {
	refused := func(what, why string, o RestoredOptions) {
		s.t.Helper()
		if _, err := s.restored(o); err == nil || !strings.Contains(err.Error(), why) {
			s.t.Errorf("%s: %v; expected %q", what, err, why)
		}
		if _, err := LoadConfig(s.dir); err != nil {
			s.t.Errorf("%s: nothing runs any more: %v", what, err)
		}
	}
	refused("a number of before", "needs a greater number than 1", RestoredOptions{Log: 1})
	former := filepath.Join(s.dir, audit.FormerDir)
	if err := os.MkdirAll(filepath.Join(former, "log-1"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	refused("a former log of that number", "is there already", RestoredOptions{})
	if err := os.RemoveAll(former); err != nil {
		s.t.Fatal(err)
	}
	elsewhere := s.dir + "-log"
	if err := errors.Join(os.Rename(logDir(s.dir), elsewhere), os.Symlink(elsewhere, logDir(s.dir))); err != nil {
		s.t.Fatal(err)
	}
	refused("a log elsewhere", "is a link or a file system of its own", RestoredOptions{})
	if err := errors.Join(os.Remove(logDir(s.dir)), os.Rename(elsewhere, logDir(s.dir))); err != nil {
		s.t.Fatal(err)
	}
	stop := s.run(slog.New(slog.DiscardHandler))
	refused("beside a server", "are connected to its database", RestoredOptions{patience: 1})
	stop()
	lite := &shared{hospital: newHospital(s.t)}
	if _, err := lite.restored(RestoredOptions{}); err == nil || !strings.Contains(err.Error(), "'wardlink-server restore'") {
		s.t.Errorf("a server on files: %v", err)
	}
}

// TestAServerThatStartsSeesTheMark: a server that had read its configuration before 'restored' began finds the mark once it is connected.
func TestAServerThatStartsSeesTheMark(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	c, err := LoadConfig(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{dir: h.dir, cfg: c, parts: AllServices(), log: slog.New(slog.DiscardHandler)}
	if err := os.WriteFile(filepath.Join(h.dir, succeedingFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.openKeys(), s.openStores()); err == nil || !strings.Contains(err.Error(), "did not come to its end") {
		t.Errorf("it goes on: %v", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}
