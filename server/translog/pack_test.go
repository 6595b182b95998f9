package translog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
)

// oldLog is a log whose first directory of windows is complete and a month old.
func oldLog(t *testing.T) (dir string, cfg Config, last uint64) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "log")
	j := newFakeJournal()
	cfg = testConfig(t, dir, j)
	cfg.PackAfter = 30 * 24 * time.Hour
	create(t, cfg)
	l := open(t, cfg)
	for range 7 {
		last = j.append(t, 750)
		if err := turn(t, l); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	_, stop := start(t, cfg) // gives the checkpoint over it
	stop()
	age(t, dir)
	return dir, cfg, last
}

// age makes all windows' files a month old.
func age(t *testing.T, dir string) {
	t.Helper()
	old := time.Now().Add(-31 * 24 * time.Hour)
	for _, path := range looseFiles(t, dir) {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
}

func looseFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, audit.WindowsDir, "*", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// failAtTurn makes the n-th step of that name fail, from 1.
func failAtTurn(l *Log, name string, n int) {
	l.step = func(step string) error {
		if step == name {
			if n--; n == 0 {
				return errStep
			}
		}
		return nil
	}
}

// Packed at any speed, killed at any step: the log verifies all the while, nothing of its detail is lost, and the next round goes on.
func TestPackingDiesAtEachStep(t *testing.T) {
	for _, at := range []struct {
		step string
		n    int
	}{
		{"", 0}, {"pack .rows", 1}, {"pack .detail", 1}, {"check packs", 1}, {"remove .detail", 1}, {"remove .detail", 2}, {"remove .rows", 1},
		{"remove .rows", 3}, {"remove directory", 1},
	} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			dir, cfg, last := oldLog(t)
			before := verify(t, dir, last)
			files := len(looseFiles(t, dir))
			l := open(t, cfg)
			failAtTurn(l, at.step, at.n)
			if packed, err := l.packNext(); at.n > 0 && !errors.Is(err, errStep) || at.n == 0 && (err != nil || !packed) {
				t.Fatalf("%v %v", packed, err)
			}
			l.Close()
			if r := verify(t, dir, last); r.Detailed != before.Detailed || r.Rows != before.Rows || r.Strays != 0 {
				t.Errorf("after the kill: %+v, before %+v", r, before)
			}
			l = open(t, cfg)
			if _, err := l.packNext(); err != nil {
				t.Fatal(err)
			}
			if packed, err := l.packNext(); packed || err != nil {
				t.Errorf("packed again: %v %v", packed, err)
			}
			l.Close()
			r := verify(t, dir, last)
			if r.Detailed != before.Detailed || r.Rows != before.Rows || r.Strays != 0 || r.Pending != 0 {
				t.Errorf("packed: %+v, before %+v", r, before)
			}
			if n := len(looseFiles(t, dir)); n == 0 || n >= files || n > 4 {
				t.Errorf("%d loose files of %d are left: those of the directory that is not complete", n, files)
			}
			_, vkey := testKey()
			row := makeRow(7)
			if _, err := audit.Prove(dir, vkey, audit.Query{Gateway: row.Gateway, Lane: row.Lane, Number: row.Number, Epoch: &row.Epoch}); err != nil {
				t.Errorf("a packed row is not proven: %v", err)
			}
			// The writer goes on behind it.
			j := cfg.Journal.(*fakeJournal)
			last = j.append(t, 20)
			l, stop := start(t, cfg)
			waitFor(t, l, last)
			stop()
			verify(t, dir, last)
		})
	}
}

// What is young, or not in the log as a whole, stays loose; what is damaged is not packed, and does not hold up what is behind it.
func TestWhatIsNotPacked(t *testing.T) {
	dir, cfg, _ := oldLog(t)
	files := looseFiles(t, dir)
	now := time.Now()
	if err := os.Chtimes(files[len(files)-3], now, now); err != nil {
		t.Fatal(err)
	}
	l := open(t, cfg)
	defer l.Close()
	if err := os.Chtimes(files[0], now, now); err != nil {
		t.Fatal(err)
	}
	if packed, err := l.packNext(); packed || err != nil {
		t.Errorf("young: %v %v", packed, err)
	}
	age(t, dir)
	detail := ""
	for _, f := range files {
		if strings.HasSuffix(f, audit.DetailSuffix) {
			detail = f
			break
		}
	}
	data, err := os.ReadFile(detail)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if err := os.WriteFile(detail, data, 0o600); err != nil {
		t.Fatal(err)
	}
	age(t, dir)
	if packed, err := l.packNext(); packed || err == nil || !strings.Contains(err.Error(), "audit verify") {
		t.Errorf("damaged: %v %v", packed, err)
	}
	if n := len(looseFiles(t, dir)); n != len(files) {
		t.Errorf("%d of %d files are left", n, len(files))
	}
	if packed, err := l.packNext(); packed || err != nil {
		t.Errorf("it holds up what is behind it: %v %v", packed, err)
	}
}

// A pack that was tampered with is a doubt: a changed row, a window that no leaf stands for, a pack cut off.
func TestTamperedPackIsDoubted(t *testing.T) {
	dir, cfg, last := oldLog(t)
	l := open(t, cfg)
	if packed, err := l.packNext(); !packed || err != nil {
		t.Fatal(packed, err)
	}
	l.Close()
	verify(t, dir, last)
	_, vkey := testKey()
	for _, suffix := range []string{audit.RowsSuffix, audit.DetailSuffix} {
		path := filepath.Join(dir, audit.PackFile(0, suffix))
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		windows, err := audit.DecodePack(good, 0)
		if err != nil {
			t.Fatal(err)
		}
		changed := append([]byte(nil), windows[1].Data...)
		changed[len(changed)-1] ^= 1
		fewer := windows[:1]
		for name, w := range map[string][]audit.Packed{
			"a changed byte":      {windows[0], {First: windows[1].First, Last: windows[1].Last, Data: changed}},
			"a window of no leaf": append(append([]audit.Packed(nil), windows[:len(windows)-1]...), audit.Packed{First: 4000, Last: 4001, Data: []byte{1}}),
			"windows missing":     fewer,
		} {
			if suffix == audit.DetailSuffix && name == "windows missing" {
				continue // rows need not be kept for ever, and DetailSince demands them
			}
			data, err := audit.EncodePack(w)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := audit.Verify(dir, vkey); err == nil {
				t.Errorf("%s: %s passes", suffix, name)
			}
		}
		if err := os.WriteFile(path, good[:len(good)-1], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Verify(dir, vkey); err == nil {
			t.Errorf("%s: a pack cut off passes", suffix)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify(t, dir, last)
}
