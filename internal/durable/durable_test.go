package durable

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestWriteFileReplacesWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	for _, want := range []string{"first", "second, longer", "3"} {
		if err := WriteFile(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Fatalf("%d names left in the directory, %v; want only the file", len(names), err)
	}
}

func TestWriteFileFailureKeepsFormer(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	// A directory that is not empty cannot be replaced by rename: the last step before durability fails.
	if err := os.MkdirAll(filepath.Join(path, "inside"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := WriteFile(path, []byte("x"), 0o600)
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("error %v does not name the file", err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Fatalf("a temporary file stayed: %v, %v", names, err)
	}
}

func TestABGenerations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ab")
	f, data, err := OpenAB(path, 1000)
	if err != nil || data != nil {
		t.Fatalf("fresh: %v, %v", data, err)
	}
	for i := range 9 {
		want := bytes.Repeat([]byte{byte(i)}, (i*37)%90)
		if err := f.Store(want); err != nil {
			t.Fatal(err)
		}
		g, got, err := OpenAB(path, 1000)
		if err != nil || got == nil || !bytes.Equal(got, want) {
			t.Fatalf("after store %d: %v, %v", i, got, err)
		}
		if i%3 == 2 {
			f = g // a restart continues the generations
		}
	}
	if err := f.Store(make([]byte, 1001)); err == nil {
		t.Fatal("an over-long value was stored")
	}
}

// TestABTornAtEveryByte builds the state after each prefix of the overwriting write reached the disk, with the rest old bytes,
// zeros, or missing, and wants the former value each time until the last byte is there.
func TestABTornAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ab")
	f, _, err := OpenAB(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"oldest value", "former value", "newest value!"} {
		if v == "newest value!" {
			break
		}
		if err := f.Store([]byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	target := path + abNames[f.next]
	old, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	fresh := appendAB(nil, f.generation+1, []byte("newest value!"))
	for cut := range len(fresh) + 1 {
		rest := old[min(cut, len(old)):]
		variants := map[string][]byte{
			"old":   append(bytes.Clone(fresh[:cut]), rest...),
			"zero":  append(bytes.Clone(fresh[:cut]), make([]byte, len(fresh)-cut)...),
			"short": bytes.Clone(fresh[:cut]),
		}
		for name, raw := range variants {
			if err := os.WriteFile(target, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			g, data, err := OpenAB(path, 100)
			want := "former value"
			if bytes.HasPrefix(raw, fresh) {
				want = "newest value!"
			}
			if err != nil || string(data) != want {
				t.Fatalf("cut %d, rest %s: %q, %v; want %q", cut, name, data, err, want)
			}
			// And it goes on from there without touching the whole copy.
			if err := g.Store([]byte("next")); err != nil {
				t.Fatal(err)
			}
			if _, data, err := OpenAB(path, 100); err != nil || string(data) != "next" {
				t.Fatalf("cut %d, rest %s: after another store %q, %v", cut, name, data, err)
			}
			restore(t, path, f, old)
		}
	}
}

// restore puts back the pair as it was before the torn write.
func restore(t *testing.T, path string, f *AB, old []byte) {
	t.Helper()
	if err := os.WriteFile(path+abNames[f.next], old, 0o600); err != nil {
		t.Fatal(err)
	}
	raw := appendAB(nil, f.generation, []byte("former value"))
	if err := os.WriteFile(path+abNames[1-f.next], raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestABDamageIsNotEmptiness(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ab")
	f, _, err := OpenAB(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Store([]byte("only value")); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path + ".a")
	if err != nil {
		t.Fatal(err)
	}
	raw[abHead] ^= 1
	if err := os.WriteFile(path+".a", raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenAB(path, 100); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a flipped bit in the only copy: %v; want ErrDamaged", err)
	}
}

// TestAnUnreadableCopyIsNotTheOlderValue: the newest copy is there but cannot be read. Giving out the older one would be a silent step
// back, and its next Store would overwrite the newest.
func TestAnUnreadableCopyIsNotTheOlderValue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ab")
	f, _, err := OpenAB(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"older", "newest"} {
		if err := f.Store([]byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	// A directory opens and cannot be read, whoever asks.
	newest := path + ".b"
	if err := errors.Join(os.Rename(newest, newest+".kept"), os.Mkdir(newest, 0o700)); err != nil {
		t.Fatal(err)
	}
	_, data, err := OpenAB(path, 100)
	if !errors.Is(err, syscall.EISDIR) || errors.Is(err, ErrDamaged) || data != nil {
		t.Fatalf("%q, %v; want the error of the read", data, err)
	}
	if _, _, aside, _, err := OpenABOrAside(path, 100); !errors.Is(err, syscall.EISDIR) || len(aside) > 0 {
		t.Fatalf("set aside %v, %v; want nothing touched", aside, err)
	}
	if err := errors.Join(os.Remove(newest), os.Rename(newest+".kept", newest)); err != nil {
		t.Fatal(err)
	}
	if _, data, err := OpenAB(path, 100); err != nil || string(data) != "newest" {
		t.Fatalf("%q, %v", data, err)
	}
}

func TestADamagedPairIsSetAsideEachTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ab")
	for i := range 3 {
		if err := os.WriteFile(path+".a", []byte("noise"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, data, aside, lost, err := OpenABOrAside(path, 100)
		if err != nil || data != nil || len(aside) != 1 || !errors.Is(lost, ErrDamaged) {
			t.Fatalf("time %d: %q, %v, %v, %v", i, data, aside, lost, err)
		}
		if err := f.Store([]byte("value")); err != nil {
			t.Fatal(err)
		}
		if _, data, _, lost, err := OpenABOrAside(path, 100); err != nil || lost != nil || string(data) != "value" {
			t.Fatalf("time %d: then %q, %v, %v", i, data, lost, err)
		}
	}
	if kept, err := filepath.Glob(path + "*" + DamagedSuffix); err != nil || len(kept) != 3 {
		t.Fatalf("kept %v, %v; want all three", kept, err)
	}
}

func FuzzParseAB(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendAB(nil, 1, nil))
	f.Add(appendAB(nil, 7, []byte("value")))
	f.Add(append(appendAB(nil, 7, []byte("value")), "left over"...))
	f.Add(appendAB(nil, 7, []byte("value"))[:20])
	f.Fuzz(func(t *testing.T, raw []byte) {
		generation, data, err := parseAB(raw, 64)
		if err != nil {
			return
		}
		if again := appendAB(nil, generation, data); !bytes.HasPrefix(raw, again) {
			t.Fatalf("parsed %d %q, which encodes differently", generation, data)
		}
	})
}

// TestABOfANewerProgram: a copy of a later version is neither damage nor nothing, also beside a whole value of ours and where damage
// would be set aside.
func TestABOfANewerProgram(t *testing.T) {
	for _, which := range []string{"ab", "a", "b"} {
		path := filepath.Join(t.TempDir(), "ab")
		f, _, err := OpenAB(path, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []string{"former", "newest"} {
			if err := f.Store([]byte(v)); err != nil {
				t.Fatal(err)
			}
		}
		var before []string
		for _, c := range which {
			raw, err := os.ReadFile(path + "." + string(c))
			if err != nil {
				t.Fatal(err)
			}
			raw[7] = 2
			if err := os.WriteFile(path+"."+string(c), raw, 0o600); err != nil {
				t.Fatal(err)
			}
			before = append(before, string(raw))
		}
		if _, _, err := OpenAB(path, 100); !errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", which, err)
		}
		if _, _, aside, _, err := OpenABOrAside(path, 100); !errors.Is(err, ErrNewer) || aside != nil {
			t.Errorf("%s: set aside %v, %v", which, aside, err)
		}
		for i, c := range which {
			if raw, err := os.ReadFile(path + "." + string(c)); err != nil || string(raw) != before[i] {
				t.Errorf("%s: changed, %v", which, err)
			}
		}
	}
}
