package buffer

import (
	"bytes"
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

// TestNewerFormatIsRefusedAndKept: a program that is older than the files refuses the buffer, whichever file says so, and neither sets
// aside nor changes anything; the program that fits finds all batches afterwards.
func TestNewerFormatIsRefusedAndKept(t *testing.T) {
	c, b, batches := threeFiles(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	write := func(t *testing.T, path string, change func(raw []byte) []byte) {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, change(raw), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	magic := func(raw []byte) []byte { raw[7]++; return raw }
	for name, make := range map[string]func(t *testing.T, dir string){
		"format": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, formatName), func(raw []byte) []byte {
				return bytes.Replace(raw, []byte("wardlink buffer 1\n"), []byte("wardlink buffer 2\n"), 1)
			})
		},
		"both state files": func(t *testing.T, dir string) {
			ab, data, err := durable.OpenAB(filepath.Join(dir, stateName), maxState)
			if err != nil || ab.Store(data) != nil { // there is one so far
				t.Fatal(err)
			}
			for _, suffix := range []string{".a", ".b"} {
				write(t, filepath.Join(dir, stateName+suffix), magic)
			}
		},
		"one state file": func(t *testing.T, dir string) { write(t, filepath.Join(dir, stateName+".a"), magic) },
		"state": func(t *testing.T, dir string) {
			ab, data, err := durable.OpenAB(filepath.Join(dir, stateName), maxState)
			if err != nil || data == nil {
				t.Fatal(err)
			}
			data[0]++
			if err := ab.Store(data); err != nil {
				t.Fatal(err)
			}
		},
		"finished segment": func(t *testing.T, dir string) {
			path := filepath.Join(dir, fileName("vitals", 1))
			body, err := segment.Summary(path)
			if err != nil {
				t.Fatal(err)
			}
			body[0]++
			if err := segment.Finish(path, append(body, "and more"...)); err != nil {
				t.Fatal(err)
			}
		},
		"unfinished segment": func(t *testing.T, dir string) {
			head := append([]byte{formatVersion + 1}, "another header"...)
			head = binary.BigEndian.AppendUint32(head, segment.Checksum(head))
			f, err := segment.Create(filepath.Join(dir, fileName("vitals", 99)), minSegment, func(tx *bbolt.Tx) error {
				for _, name := range []string{bucketBatches, bucketSealings} {
					if _, err := tx.CreateBucket([]byte(name)); err != nil {
						return err
					}
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
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyDir(t, c.Dir)
			make(t, dir)
			before := contents(t, dir)
			_, err := open(testConfigOf(c, dir))
			if !errors.Is(err, durable.ErrNewer) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "install") {
				t.Fatalf("Open: %v", err)
			}
			after := contents(t, dir)
			for file, raw := range before {
				if after[file] != raw {
					t.Errorf("%s was changed", file)
				}
			}
			if len(after) != len(before) {
				t.Errorf("files: %d before, %d after", len(before), len(after))
			}
			if report, err := Check(dir, nil); err == nil && len(report.Findings) == 0 {
				t.Error("Check finds nothing")
			}
		})
	}
	if got := takeAll(t, mustOpen(t, c)); len(got) != batches {
		t.Errorf("%d of %d batches", len(got), batches)
	}
}

// contents are all files of a directory.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(raw)
	}
	return out
}
