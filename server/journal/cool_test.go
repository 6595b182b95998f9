package journal

import "testing"

// What every consumer has passed need not stay in memory, and is read again all the same.
func TestPassedFilesGrowCold(t *testing.T) {
	_, j := fresh(t)
	for len(j.segs) < 3 {
		if err := j.Append(t.Context(), entryOf(j, "publish", 200<<10)); err != nil {
			t.Fatal(err)
		}
	}
	cold := func() (n int) {
		for _, s := range j.segs {
			if s.cold {
				n++
			}
		}
		return n
	}
	readAll(t, j, 1) // leaves a handle open
	last := j.segs[1].last
	if err := j.SetCursor("log", last); err != nil {
		t.Fatal(err)
	}
	if n := cold(); n != 0 {
		t.Fatalf("%d files are cold that records have not passed", n)
	}
	if err := j.SetCursor("records", last-1); err != nil {
		t.Fatal(err)
	}
	if n := cold(); n != 1 {
		t.Fatalf("%d files are cold; expected the one that both have passed", n)
	}
	if err := j.SetCursor("records", last); err != nil {
		t.Fatal(err)
	}
	if n := cold(); n != 2 || j.segs[2].cold {
		t.Fatalf("%d files are cold; expected two, and not the one that is being written", n)
	}
	if got := readAll(t, j, 1); uint64(len(got)) != j.Stats().Committed {
		t.Fatalf("%d entries are read again; expected %d", len(got), j.Stats().Committed)
	}
}
