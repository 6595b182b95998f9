package journal_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"wardlink/server/journal"
	"wardlink/server/journal/journaltest"
)

func config(dir string) journal.Config {
	return journal.Config{Dir: dir, Node: 7, SegmentSize: 1 << 20, Consumers: journaltest.Consumers()}
}

func open(dir string) (journal.Store, error) { return journal.Open(config(dir)) }

func TestMain(m *testing.M) {
	journaltest.Child(open)
	os.Exit(m.Run())
}

// TestContract: what segment files have in common with every other journal.
func TestContract(t *testing.T) {
	t.Parallel()
	journaltest.Run(t, func(t testing.TB) journaltest.Place {
		dir := filepath.Join(t.TempDir(), "journal")
		if err := journal.Create(config(dir)); err != nil {
			t.Fatal(err)
		}
		return journaltest.Place{
			Name: dir,
			Open: func() (journal.Store, error) { return open(dir) },
			Check: func(t testing.TB) journal.Report {
				r, err := journal.Check(dir)
				if err != nil {
					t.Error(err)
				}
				for _, f := range r.Findings {
					t.Errorf("check: %s: %s", f.Path, f.Problem)
				}
				return r
			},
		}
	})
}

// TestIDsAcrossRestartsWithAClockThatGoesBack by an hour each time: a start's number comes from the clock.
func TestIDsAcrossRestartsWithAClockThatGoesBack(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c := config(filepath.Join(t.TempDir(), "journal"))
	c.Now = func() time.Time { return now }
	if err := journal.Create(c); err != nil {
		t.Fatal(err)
	}
	journaltest.IDs(t, journaltest.Place{Open: func() (journal.Store, error) {
		now = now.Add(-time.Hour)
		return journal.Open(c)
	}})
}

func BenchmarkSubmit(b *testing.B) {
	c := journal.Config{Dir: filepath.Join(b.TempDir(), "journal"), Consumers: []string{"log"}}
	if err := journal.Create(c); err != nil {
		b.Fatal(err)
	}
	j, err := journal.Open(c)
	if err != nil {
		b.Fatal(err)
	}
	journaltest.BenchmarkSubmit(b, j)
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
}
