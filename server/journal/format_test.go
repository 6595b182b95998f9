package journal

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

// TestFormatTable holds FORMAT.md's names and sizes to what a file really has.
func TestFormatTable(t *testing.T) {
	doc, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	c, j := fresh(t)
	if err := j.Append(context.Background(), entryOf(j, "head", 5000)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := segment.Open(filepath.Join(c.Dir, fileName(1)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows := 0
	err = f.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
			return bucket.ForEach(func(k, v []byte) error {
				row := "| `" + string(name) + "` | `" + string(k) + "` |"
				if string(name) == bucketCommits {
					row = "| `" + string(name) + "` | sequence number of its first entry, 8 bytes |"
					if k, _ := bucket.Bucket(k).Cursor().First(); !strings.Contains(string(doc), "| a commit | `"+string(k)+"` |") {
						t.Errorf("FORMAT.md does not name key %q of a commit", k)
					}
				}
				if !strings.Contains(string(doc), row) {
					t.Errorf("FORMAT.md has no row %s", row)
				}
				rows++
				return nil
			})
		})
	})
	if err != nil || rows != 2 {
		t.Fatalf("%d rows, %v", rows, err)
	}
	if headerSize != 21 || entryHead != 25 || summarySize != 45 || !strings.Contains(string(doc), "header 21,") || !strings.Contains(string(doc), strings.TrimSpace(formatText)) {
		t.Error("FORMAT.md and the code differ in sizes")
	}
}
