package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
)

// longLog makes a log of more than 512 leaves in two runs, and gives its directory's files after the first run and after the second.
func longLog(t *testing.T) (dir string, j *fakeJournal, former, latter map[string][]byte) {
	t.Helper()
	dir, j = filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	for _, n := range []int{900, 1200} {
		l, stop := start(t, cfg)
		last := j.append(t, n)
		waitFor(t, l, last)
		stop()
		former, latter = latter, readTree(t, dir)
	}
	return dir, j, former, latter
}

func readTree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// putTree makes dir hold exactly files.
func putTree(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		put(t, filepath.Join(dir, name), data)
	}
}

// class of a file of the log, or "" for those that are the writer's own business.
func class(name string) string {
	switch {
	case name == "checkpoint", name == ".state/treeState":
		return name
	case strings.HasSuffix(name, ".rows"), strings.HasSuffix(name, ".detail"):
		return filepath.Ext(name)
	case strings.HasPrefix(name, "tile/entries/") && strings.Contains(name, ".p/"):
		return "partial bundle"
	case strings.HasPrefix(name, "tile/entries/"):
		return "bundle"
	case strings.HasPrefix(name, "tile/") && strings.Contains(name, ".p/"):
		return "partial tile"
	case strings.HasPrefix(name, "tile/"):
		return "tile"
	}
	return ""
}

// TestTampering changes one file of each class in each way; the verifier must doubt the log.
func TestTampering(t *testing.T) {
	t.Parallel()
	dir, _, former, files := longLog(t)
	_, vkey := testKey()
	options := audit.Options{DetailSince: 1}
	report, err := audit.VerifyWith(dir, vkey, options)
	if err != nil || report.Size < 513 {
		t.Fatalf("untouched: %+v, %v", report, err)
	}
	needed := neededParts(report.Size)
	ways := map[string]func(name string, data []byte) []byte{
		"flip first byte":  func(_ string, d []byte) []byte { d[0] ^= 1; return d },
		"flip middle byte": func(_ string, d []byte) []byte { d[len(d)/2] ^= 0x10; return d },
		"flip last byte":   func(_ string, d []byte) []byte { d[len(d)-1] ^= 0x80; return d },
		"truncate":         func(_ string, d []byte) []byte { return d[:len(d)-1] },
		"truncate to half": func(_ string, d []byte) []byte { return d[:len(d)/2] },
		"empty":            func(_ string, _ []byte) []byte { return []byte{} },
		"append":           func(_ string, d []byte) []byte { return append(d, 'x') },
		"put back":         func(name string, _ []byte) []byte { return former[name] },
		"delete":           func(string, []byte) []byte { return nil },
	}
	tried := map[string]int{}
	for name, data := range files {
		c := class(name)
		if c == "" || (strings.HasPrefix(c, "partial") && !needed[name]) {
			continue // a superseded partial tile is in no proof
		}
		for way, change := range ways {
			changed := change(name, bytes.Clone(data))
			if (way == "put back" && (changed == nil || bytes.Equal(changed, data))) || (way == "delete" && name == ".state/treeState") {
				continue // it did not change; or an auditor's copy, which need not have it
			}
			path := filepath.Join(dir, name)
			if changed == nil {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				put(t, path, changed)
			}
			tried[c+"/"+way]++
			var doubt *audit.DoubtError
			if _, err := audit.VerifyWith(dir, vkey, options); !errors.As(err, &doubt) {
				t.Errorf("%s, %s: verifier says %v", name, way, err)
			}
			put(t, path, data)
		}
	}
	for _, c := range []string{"checkpoint", ".state/treeState", ".rows", ".detail", "bundle", "partial bundle", "tile", "partial tile"} {
		if tried[c+"/flip first byte"] == 0 || tried[c+"/truncate"] == 0 {
			t.Errorf("no file of class %q was tampered with", c)
		}
	}
	for _, c := range []string{"checkpoint/put back", ".state/treeState/put back", ".detail/delete"} {
		if tried[c] == 0 {
			t.Errorf("%s was not tried", c)
		}
	}
	if _, err := audit.VerifyWith(dir, vkey, options); err != nil {
		t.Errorf("restored: %v", err)
	}
}

// neededParts are the partial tile and bundle names that a log of that size needs.
func neededParts(size uint64) map[string]bool {
	needed := map[string]bool{}
	for level, n := 0, size; n > 0; level, n = level+1, n/256 {
		if n%256 == 0 {
			continue
		}
		part := func(kind string) string {
			return filepath.Join("tile", kind, fmt.Sprintf("%03d", n/256)+".p", fmt.Sprint(n%256))
		}
		needed[part(fmt.Sprint(level))] = true
		if level == 0 {
			needed[part("entries")] = true
		}
	}
	return needed
}

// TestRollback puts the whole directory back. The log itself is consistent then; a checkpoint kept elsewhere shows it, and so does
// the journal's cursor to the writer.
func TestRollback(t *testing.T) {
	t.Parallel()
	dir, j, former, latter := longLog(t)
	_, vkey := testKey()
	kept := audit.Options{Older: [][]byte{latter["checkpoint"]}}
	if _, err := audit.VerifyWith(dir, vkey, audit.Options{Older: [][]byte{former["checkpoint"], latter["checkpoint"]}}); err != nil {
		t.Errorf("a log does not agree with its own former checkpoint: %v", err)
	}
	cfg := testConfig(t, dir, j)
	for name, change := range map[string]func(){
		"all": func() { putTree(t, dir, former) },
		"all but the mark": func() {
			putTree(t, dir, former)
			for name, data := range latter {
				if strings.HasPrefix(name, stateDir) {
					put(t, filepath.Join(dir, name), data)
				}
			}
		},
	} {
		change()
		var doubt *audit.DoubtError
		if _, err := audit.VerifyWith(dir, vkey, kept); !errors.As(err, &doubt) {
			t.Errorf("put back %s: verifier with a kept checkpoint says %v", name, err)
		}
		if _, err := Open(cfg); !errors.Is(err, ErrUnsound) {
			t.Errorf("put back %s: Open says %v", name, err)
		}
	}
	putTree(t, dir, latter)
	for name, data := range former {
		if strings.HasPrefix(name, stateDir+"/mark") {
			put(t, filepath.Join(dir, name), data)
		}
	}
	if _, err := Open(cfg); !errors.Is(err, ErrUnsound) {
		t.Errorf("put back the mark: Open says %v", err)
	}
	putTree(t, dir, latter)
	open(t, cfg).Close()
}

// TestUnsoundJournal gives a log a journal that is not its own.
func TestUnsoundJournal(t *testing.T) {
	t.Parallel()
	dir, j, _, _ := longLog(t)
	cfg := testConfig(t, dir, nil)
	empty := newFakeJournal()
	short := newFakeJournal()
	short.append(t, 100)
	foreign := newFakeJournal()
	foreign.append(t, 3000)
	for i := range foreign.entries {
		foreign.entries[i].ID[0] = 9
	}
	for name, other := range map[string]*fakeJournal{"made anew": empty, "put back": short, "foreign": foreign} {
		cfg.Journal = other
		if _, err := Open(cfg); !errors.Is(err, ErrUnsound) {
			t.Errorf("journal %s: Open says %v", name, err)
		}
	}
	// All entries past their retention and gone is sound, as long as the cursor says that they were logged.
	old := newFakeJournal()
	old.first, old.cursor = j.cursor+1, j.cursor
	cfg.Journal = old
	open(t, cfg).Close()
}

// runBriefly runs a log that is expected to stop by itself.
func runBriefly(t *testing.T, l *Log) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return l.Run(ctx)
}

// TestForeignKey opens a log with a new key of the same name.
func TestForeignKey(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, filepath.Join(t.TempDir(), "log"), newFakeJournal())
	create(t, cfg)
	skey, _, err := NewKey(testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Signer = signer(t, skey)
	if _, err := Open(cfg); !errors.Is(err, ErrUnsound) {
		t.Errorf("Open with another key: %v", err)
	}
}

// TestLogPastJournal: the log holds an act past its mark that the journal never had.
func TestLogPastJournal(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	j.append(t, 40)
	l := open(t, cfg)
	failAt(l, "mark")
	if err := turn(t, l); !errors.Is(err, errStep) {
		t.Fatal(err)
	}
	l.Close()
	j.entries = j.entries[:20]
	if err := runBriefly(t, open(t, cfg)); !errors.Is(err, ErrUnsound) {
		t.Errorf("Run: %v", err)
	}
}

// TestOtherLog: a log by the same key that is as long and not the one of the mark, as after a put-back that grew again.
func TestOtherLog(t *testing.T) {
	t.Parallel()
	made := func(passes ...int) (cfg Config, files map[string][]byte) {
		j := newFakeJournal()
		cfg = testConfig(t, filepath.Join(t.TempDir(), "log"), j)
		create(t, cfg)
		l := open(t, cfg)
		for _, n := range passes {
			j.append(t, n)
			if err := turn(t, l); err != nil {
				t.Fatal(err)
			}
		}
		l.Close()
		return cfg, readTree(t, cfg.Dir)
	}
	cfg, files := made(50, 50)
	other, _ := made(30, 70)
	for name, data := range files {
		if strings.HasPrefix(name, stateDir) {
			put(t, filepath.Join(other.Dir, name), data)
		}
	}
	other.Journal = cfg.Journal
	if _, err := Open(other); !errors.Is(err, ErrUnsound) {
		t.Errorf("Open: %v", err)
	}
}
