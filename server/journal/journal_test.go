package journal

import (
	"bytes"
	"path/filepath"
	"testing"
)

func testConfig(dir string) Config {
	return Config{Dir: dir, Node: 7, SegmentSize: minSegment, Consumers: []string{"log", "records"}}
}

func mustOpen(t testing.TB, c Config) *Journal {
	t.Helper()
	j, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		// Nobody can forget the check: every journal that a test opened is verified when the test is over.
		mustCheck(t, c.Dir)
	})
	return j
}

func mustCheck(t testing.TB, dir string) Report {
	t.Helper()
	r, err := Check(dir)
	if err != nil {
		t.Error(err)
	}
	for _, f := range r.Findings {
		t.Errorf("check: %s: %s", f.Path, f.Problem)
	}
	return r
}

func fresh(t testing.TB) (Config, *Journal) {
	t.Helper()
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	return c, mustOpen(t, c)
}

func entryOf(j *Journal, text string, blob int) Entry {
	return Entry{ID: j.NextID(), Kind: KindPublish, Head: []byte(text), Blob: bytes.Repeat([]byte("b"), blob)}
}

func readAll(t testing.TB, j *Journal, from uint64) []Entry {
	t.Helper()
	var all []Entry
	for {
		got, err := j.Read(from, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			return all
		}
		all = append(all, got...)
		from = got[len(got)-1].Seq + 1
	}
}
