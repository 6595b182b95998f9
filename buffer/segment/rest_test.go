package segment

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// resident is how many KB of a file's mappings are in this process's memory.
func resident(t *testing.T, path string) (kb int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	own, found := false, false
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) > 1 && len(f[1]) == 4 && strings.HasPrefix(f[1], "r") {
			own = len(f) == 6 && f[5] == path
			found = found || own
		}
		if own && f[0] == "Rss:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			kb += n
		}
	}
	if !found {
		t.Fatalf("%s is not mapped", path)
	}
	return kb
}

// TestRestGivesPagesBack of a file that is written and of one that is read, and what is in them can be read again.
func TestRestGivesPagesBack(t *testing.T) {
	f := made(t)
	if err := put(f, "k", 100_000); err != nil {
		t.Fatal(err)
	}
	look := func(f *File) {
		t.Helper()
		for range 2 {
			found := 0
			if err := f.View(func(tx *bbolt.Tx) error {
				for _, c := range tx.Bucket(data).Bucket([]byte("k")).Get([]byte("v")) {
					found += int(c) / 7
				}
				return nil
			}); err != nil || found != 100_000 {
				t.Fatalf("%d bytes read, %v", found, err)
			}
			before := resident(t, f.Path())
			f.Rest()
			if after := resident(t, f.Path()); before < 100 || after > 0 {
				t.Errorf("%d KB before, %d KB after", before, after)
			}
		}
	}
	look(f)
	if err := put(f, "l", 100_000); err != nil {
		t.Fatal(err)
	}
	look(f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.Rest() // of a closed file: nothing
	again, err := Open(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	look(again)
}
