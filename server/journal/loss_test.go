package journal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// failFirstCommit leaves the journal as a commit does that is the first of a new segment, reaches the disk, and is told of an error.
func failFirstCommit(t *testing.T, j *Journal, first uint64) {
	t.Helper()
	if err := j.begin(first); err != nil {
		t.Fatal(err)
	}
	value := pack(nil, first, []Entry{entryOf(j, "void", 10)})
	err := j.current.file.Commit(1<<17, func(tx *bbolt.Tx) error {
		commit, err := tx.Bucket([]byte(bucketCommits)).CreateBucket(seqKey(first))
		if err != nil {
			return err
		}
		return commit.Put([]byte(keyEntries), value)
	})
	if err != nil {
		t.Fatal(err)
	}
	j.finish()
}

// TestVoidFileTakesNoNumbers sets a file aside whose first commit failed, and restarts before there is a successor: the next entry
// follows the last acknowledged one all the same. Twice, so that the second file needs another name.
func TestVoidFileTakesNoNumbers(t *testing.T) {
	ctx := context.Background()
	c, j := fresh(t)
	for range 3 {
		if err := j.Append(ctx, entryOf(j, "before", 10)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		failFirstCommit(t, j, 4)
		if err := j.clear(4); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, c)
	if err := j.Append(ctx, entryOf(j, "after", 10)); err != nil {
		t.Fatal(err)
	}
	all := readAll(t, j, 1)
	if len(all) != 4 || all[3].Seq != 4 || string(all[3].Head) != "after" {
		t.Fatalf("%d entries, the last %+v; want 4 without a hole", len(all), all[len(all)-1])
	}
	if names, err := filepath.Glob(filepath.Join(c.Dir, fileName(4)+"*"+voidSuffix)); err != nil || len(names) != 2 {
		t.Errorf("files set aside: %v, %v; want 2", names, err)
	}
	if st := j.Stats(); len(st.Damaged) != 0 {
		t.Errorf("void files count as damaged: %v", st.Damaged)
	}
}

// TestUnreadableFileIsPassedOver makes the disk refuse one finished file for good. Reads fail for a while, and then go on behind it.
func TestUnreadableFileIsPassedOver(t *testing.T) {
	ctx := context.Background()
	now := time.Unix(1_800_000_000, 0)
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	c.Now = func() time.Time { return now }
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	for range 3 { // each run writes a file of its own
		j := mustOpen(t, c)
		if err := j.Append(ctx, entryOf(j, "x", 10), entryOf(j, "y", 10)); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	j := mustOpen(t, c)
	path := filepath.Join(c.Dir, fileName(3))
	if err := os.Rename(path, path+".kept"); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path + ".kept") // no file of the journal: its Check would say so
	// A link to itself cannot be opened: an error of the disk, not of what the file holds.
	if err := os.Symlink(path, path); err != nil {
		t.Fatal(err)
	}
	refused := func(n int) {
		t.Helper()
		for range n {
			if got, err := j.Read(1, 10); err == nil || len(got) != 2 {
				t.Fatalf("%d entries, %v; want the 2 before the file, and an error", len(got), err)
			}
		}
	}
	refused(2)
	now = now.Add(readTime) // long enough, but tried too seldom
	refused(readTries - 3)
	now = now.Add(-readTime) // tried often enough, but within a moment
	refused(3)
	now = now.Add(readTime)
	got, err := j.Read(1, 10)
	if err != nil || len(got) != 4 || got[2].Seq != 5 {
		t.Fatalf("%d entries, %v; want those around the hole", len(got), err)
	}
	if st := j.Stats(); len(st.Damaged) != 1 || !strings.HasPrefix(st.Damaged[0], fileName(3)) {
		t.Errorf("damaged: %v", st.Damaged)
	}
}

// TestStartWithoutCursors deletes the cursors, as Open advises when both are damaged, with a clock that went back: no event id comes
// a second time.
func TestStartWithoutCursors(t *testing.T) {
	ctx := context.Background()
	now := time.Unix(1_800_000_000, 0)
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	c.Now = func() time.Time { return now }
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		j := mustOpen(t, c)
		if err := j.Append(ctx, entryOf(j, "x", 10)); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, suffix := range []string{".a", ".b"} {
		if err := os.Remove(filepath.Join(c.Dir, cursorName+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	now = now.Add(-time.Hour)
	j := mustOpen(t, c)
	e := entryOf(j, "x", 10)
	for _, old := range readAll(t, j, 1) {
		if string(old.ID[4:8]) >= string(e.ID[4:8]) {
			t.Errorf("id %s after %s", e.ID, old.ID)
		}
	}
}
