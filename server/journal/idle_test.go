package journal

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestIdleJournalMendsItself: who asks for Health sends no traffic to an ill node, so a recovery must show without traffic. A directory
// in the way of the next file stands for the full disk, which e2e tests.
func TestIdleJournalMendsItself(t *testing.T) {
	c := Config{Dir: t.TempDir(), Node: 1, SegmentSize: minSegment, Consumers: []string{"log"}}
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	j, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	blocker := filepath.Join(c.Dir, fileName(1)+".tmp")
	if err := os.MkdirAll(filepath.Join(blocker, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(t.Context(), entryOf(j, "first", 10)); err == nil || j.Health() == nil {
		t.Fatalf("an entry without a file: %v, health %v", err, j.Health())
	}
	if err := os.RemoveAll(blocker); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); j.Health() != nil; {
		if time.Now().After(deadline) {
			t.Fatalf("still ill: %v", j.Health())
		}
		<-time.After(10 * time.Millisecond)
	}
	if err := j.Append(t.Context(), entryOf(j, "second", 10)); err != nil {
		t.Fatal(err)
	}
	if st := j.Stats(); st.Committed != 1 || st.Segments != 1 {
		t.Errorf("%+v; expected one entry, the first of its file", st)
	}
}

// TestEvidenceOfAFailingDiskIsBounded: each attempt may leave a void file of 64 MB.
func TestEvidenceOfAFailingDiskIsBounded(t *testing.T) {
	c := Config{Dir: t.TempDir(), Node: 1, SegmentSize: minSegment, Consumers: []string{"log"}}
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	j, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	path := filepath.Join(c.Dir, fileName(1))
	for range 3 * maxVoid {
		if err := os.WriteFile(path, []byte("failed"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := j.setVoid(path); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Fatalf("the file is still in the way: %v", err)
		}
	}
	if void, _ := filepath.Glob(filepath.Join(c.Dir, "*"+voidSuffix)); len(void) != maxVoid {
		t.Errorf("%d files are kept, expected %d", len(void), maxVoid)
	}
}
