package buffer

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

// TestFormatTable holds FORMAT.md's table of buckets and keys, and its sizes, to what a file really has.
func TestFormatTable(t *testing.T) {
	doc, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`\\w+`|a batch) \\| (`\\w`|[^|]+) \\|").FindAllStringSubmatch(string(doc), -1) {
		key := "*"
		if strings.HasPrefix(row[2], "`") {
			key = strings.Trim(row[2], "`")
		}
		if strings.HasPrefix(row[1], "`state") || row[1] == "`format`" || row[1] == "`lock`" || row[1] == "`reserve`" {
			continue
		}
		documented[strings.Trim(row[1], "`")+"/"+key] = true
	}
	c, b := fresh(t)
	if err := b.Append([]Item{itemOf(1, 1, 0, 100)}); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.Dir, "vitals-0000000000000001.seg")
	f, err := segment.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := map[string]bool{}
	err = f.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
			return bucket.ForEach(func(k, v []byte) error {
				if string(name) != bucketHeader {
					found[string(name)+"/*"] = true
				} else {
					found[string(name)+"/"+string(k)] = true
					if len(v) != headerSize || !strings.Contains(string(doc), "header, 82 bytes") || headerSize != 82 {
						t.Errorf("header has %d bytes", len(v))
					}
				}
				if v != nil {
					return nil
				}
				return bucket.Bucket(k).ForEach(func(k, v []byte) error {
					found["a batch/"+string(k)] = true
					return nil
				})
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(found, documented) {
		t.Errorf("a file has %v, FORMAT.md names %v", found, documented)
	}
	for text, is := range map[string]bool{
		"37 bytes each":         seenSize == 37,
		"64 to 65536":           filterBytes == 65536,
		"At most 256 KB":        maxState == 256<<10,
		"80 KB of each segment": segment.Reserve == 80<<10,
		"4 MB by default":       defaultSegment == 4<<20,
		"the 32 bytes before":   batchMetaSize == 36,
		"page size 4096":        segment.PageSize == 4096,
		"`WLSEGEND`":            true,
		"936 losses":            mostLosses == 936,
		"64 KB at most":         maxLosses == 64<<10,
		"10 minutes":            eatenFirst == 10*time.Minute && eatenMost == 24*time.Hour,
		"wardlink buffer 1":     strings.HasPrefix(string(encodeFormat(testLanes)), "wardlink buffer 1\n"),
	} {
		if !is || !strings.Contains(strings.ReplaceAll(string(doc), "\n", " "), text) {
			t.Errorf("FORMAT.md and the code differ on %q", text)
		}
	}
}
