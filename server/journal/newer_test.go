package journal

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

// TestNewerFormatIsRefusedAndKept: a journal that a newer program wrote is refused, whichever file says so, and stays as it is.
func TestNewerFormatIsRefusedAndKept(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, dir string) (file string){
		"format": func(t *testing.T, dir string) string {
			if err := os.WriteFile(filepath.Join(dir, formatName), []byte("wardlink journal 2\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return formatName
		},
		"cursors": func(t *testing.T, dir string) string {
			ab, data, err := durable.OpenAB(filepath.Join(dir, cursorName), maxCursors)
			if err != nil || data == nil {
				t.Fatal(err)
			}
			data[0]++
			if err := ab.Store(data); err != nil {
				t.Fatal(err)
			}
			return cursorName + ".b"
		},
		"finished segment": func(t *testing.T, dir string) string {
			files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
			if err != nil || len(files) == 0 {
				t.Fatal(err)
			}
			body, err := segment.Summary(files[0])
			if err != nil {
				t.Fatal(err)
			}
			body[0]++
			if err := segment.Finish(files[0], append(body, "and more"...)); err != nil {
				t.Fatal(err)
			}
			return filepath.Base(files[0])
		},
		"unfinished segment": func(t *testing.T, dir string) string {
			head := append([]byte{formatVersion + 1}, "another header"...)
			head = binary.BigEndian.AppendUint32(head, segment.Checksum(head))
			f, err := segment.Create(filepath.Join(dir, fileName(1000)), 1<<20, func(tx *bbolt.Tx) error {
				if _, err := tx.CreateBucket([]byte(bucketCommits)); err != nil {
					return err
				}
				header, err := tx.CreateBucket([]byte(bucketHeader))
				if err != nil {
					return err
				}
				return header.Put([]byte(keyHeader), head)
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			return fileName(1000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := testConfig(filepath.Join(t.TempDir(), "journal"))
			if err := Create(c); err != nil {
				t.Fatal(err)
			}
			j, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			if err := j.Append(t.Context(), entryOf(j, "kept", 100)); err != nil {
				t.Fatal(err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			file := change(t, c.Dir)
			before, err := os.ReadFile(filepath.Join(c.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Open(c); !errors.Is(err, durable.ErrNewer) || !strings.Contains(err.Error(), c.Dir) || strings.Contains(err.Error(), "delete") {
				t.Fatalf("Open: %v", err)
			}
			if after, err := os.ReadFile(filepath.Join(c.Dir, file)); err != nil || string(after) != string(before) {
				t.Errorf("%s was changed: %v", file, err)
			}
			if aside, _ := filepath.Glob(filepath.Join(c.Dir, "*.damaged")); len(aside) > 0 {
				t.Errorf("set aside: %q", aside)
			}
			if report, err := Check(c.Dir); err == nil && len(report.Findings) == 0 {
				t.Error("Check finds nothing")
			}
		})
	}
}
