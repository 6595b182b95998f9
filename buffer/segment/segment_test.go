package segment

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

const testSize = 1 << 20

var data = []byte("data")

func made(t testing.TB) *File { return createAt(t, filepath.Join(t.TempDir(), "a.seg")) }

func createAt(t testing.TB, path string) *File {
	t.Helper()
	f, err := Create(path, testSize, func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// put writes one value in a bucket of its own.
func put(f *File, key string, size int) error {
	return f.Commit(int64(size)+12*PageSize, func(tx *bbolt.Tx) error {
		b, err := tx.Bucket(data).CreateBucket([]byte(key))
		if err != nil {
			return err
		}
		return b.Put([]byte("v"), bytes.Repeat([]byte{7}, size))
	})
}

func count(t testing.TB, f *File) (n int) {
	t.Helper()
	err := f.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(data).ForEach(func(k, _ []byte) error {
			n++
			for _, b := range tx.Bucket(data).Bucket(k).Get([]byte("v")) {
				if b != 7 {
					return fmt.Errorf("%w: value of %s", ErrDamaged, k)
				}
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCreateIsWholeOrNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.seg")
	if _, err := Create(path, testSize, func(*bbolt.Tx) error { return errors.New("no") }); err == nil {
		t.Fatal("created although fill failed")
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 0 {
		t.Fatalf("a failed create left %v, %v", names, err)
	}
	if err := os.WriteFile(path+TempSuffix, []byte("half of a segment"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := createAt(t, path)
	if _, err := Create(path, testSize, nil); !errors.Is(err, ErrExists) {
		t.Fatalf("second create: %v; want ErrExists", err)
	}
	if n, err := DiskBytes(path); err != nil || n < testSize {
		t.Fatalf("%d bytes allocated, %v; want %d", n, err, testSize)
	}
	if err := put(f, "k", 10); err != nil {
		t.Fatal(err)
	}
}

// TestNeverGrows fills segments with values of all sizes under readers that hold old pages: the file keeps its length to the end.
func TestNeverGrows(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 4 {
		f := made(t)
		keys := 0
		for {
			err := f.View(func(*bbolt.Tx) error { return put(f, fmt.Sprintf("%08d", keys), rng.IntN(9000)) })
			if errors.Is(err, ErrNoRoom) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			keys++
		}
		if info, err := os.Stat(f.Path()); err != nil || info.Size() != testSize {
			t.Fatalf("%d bytes, %v", info.Size(), err)
		}
		if got := count(t, f); got != keys || keys < 50 {
			t.Fatalf("%d keys of %d", got, keys)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := Finish(f.Path(), make([]byte, MaxSummary)); err != nil {
			t.Fatal(err)
		}
		if n, err := DiskBytes(f.Path()); err != nil || n > testSize {
			t.Fatalf("%d bytes once finished, %v", n, err)
		}
		r, err := Open(f.Path())
		if err != nil {
			t.Fatal(err)
		}
		if got := count(t, r); got != keys {
			t.Fatalf("%d keys of %d once finished", got, keys)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestErrorsOfTheCallbackAreHarmless(t *testing.T) {
	f := made(t)
	if err := put(f, "a", 100); err != nil {
		t.Fatal(err)
	}
	if err := put(f, "a", 100); err == nil || errors.Is(err, ErrClosed) {
		t.Fatalf("the same key: %v", err)
	}
	if err := put(f, "b", testSize); !errors.Is(err, ErrNoRoom) {
		t.Fatalf("too large: %v; want ErrNoRoom", err)
	}
	if err := put(f, "b", 100); err != nil {
		t.Fatalf("after harmless errors: %v", err)
	}
}

func TestAPanicClosesForGood(t *testing.T) {
	f := made(t)
	if err := put(f, "a", 100); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(0, func(*bbolt.Tx) error { panic("as bbolt does") }); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a panic in a commit: %v; want ErrDamaged", err)
	}
	if err := put(f, "b", 100); !errors.Is(err, ErrClosed) {
		t.Fatalf("the next commit: %v; want ErrClosed", err)
	}
	// bbolt's locks are lost, the file is not: another handle reads it.
	r, err := Open(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	if got := count(t, r); got != 1 {
		t.Fatalf("%d keys", got)
	}
	if err := r.View(func(*bbolt.Tx) error { var none []int; _ = none[count(t, r)]; return nil }); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a panic in a read: %v; want ErrDamaged", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestMappedFault cuts a file behind the mapping's back: reading a page that is gone is SIGBUS, and must be an error.
func TestMappedFault(t *testing.T) {
	f := made(t)
	for i := range 40 {
		if err := put(f, fmt.Sprint(i), 5000); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Open(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(f.Path(), 8*PageSize); err != nil {
		t.Fatal(err)
	}
	err = r.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(data).ForEach(func(k, _ []byte) error {
			sum := 0
			for _, b := range tx.Bucket(data).Bucket(k).Get([]byte("v")) {
				sum += int(b)
			}
			return nil
		})
	})
	if !errors.Is(err, ErrDamaged) {
		t.Fatalf("read of a cut file: %v; want ErrDamaged", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f.Path()); !errors.Is(err, ErrDamaged) {
		t.Fatalf("open of a cut file: %v; want ErrDamaged", err)
	}
}

// TestSummaryTorn cuts and spoils the summary at every byte: it is whole or it is not there, and the segment stays readable.
func TestSummaryTorn(t *testing.T) {
	f := made(t)
	if err := put(f, "a", 100); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Summary(f.Path()); !errors.Is(err, ErrUnfinished) {
		t.Fatalf("before finish: %v; want ErrUnfinished", err)
	}
	want := []byte("the summary of a segment")
	if err := Finish(f.Path(), want); err != nil {
		t.Fatal(err)
	}
	if got, err := Summary(f.Path()); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%q, %v", got, err)
	}
	raw, err := os.ReadFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	for back := 1; back <= len(want)+trailerTail; back++ {
		flipped := bytes.Clone(raw)
		flipped[len(raw)-back] ^= 4
		for name, torn := range map[string][]byte{"cut": raw[:len(raw)-back], "flipped": flipped} {
			if err := os.WriteFile(f.Path(), torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := Summary(f.Path()); !errors.Is(err, ErrUnfinished) {
				t.Fatalf("%s %d from the end: %q, %v; want ErrUnfinished", name, back, got, err)
			}
			r, err := Open(f.Path())
			if err != nil {
				t.Fatal(err)
			}
			if count(t, r) != 1 {
				t.Fatal("the segment lost its value")
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := Finish(f.Path(), want); err != nil {
		t.Fatal(err)
	}
	if got, err := Summary(f.Path()); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("finished again: %q, %v", got, err)
	}
}

func TestSetAsideKeeps(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		path := filepath.Join(dir, "a.seg")
		if err := os.WriteFile(path, []byte{byte(i)}, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := SetAside(path); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*"+DamagedSuffix)); err != nil || len(names) != 3 {
		t.Fatalf("kept %v, %v; want all three", names, err)
	}
}

// FuzzInspect spoils a segment and wants one of two things: Inspect says so, or bbolt walks the whole file without a panic.
func FuzzInspect(f *testing.F) {
	s := made(f)
	for i := range 130 {
		if err := put(s, fmt.Sprintf("%04d", i), []int{20, 900, 6000}[i%3]); err != nil {
			f.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	if err := Finish(s.Path(), []byte("end")); err != nil {
		f.Fatal(err)
	}
	base, err := os.ReadFile(s.Path())
	if err != nil {
		f.Fatal(err)
	}
	for page := range 12 {
		f.Add(uint16(page), uint16(0), uint64(3))        // another page id
		f.Add(uint16(page), uint16(8), uint64(1))        // a branch
		f.Add(uint16(page), uint16(10), uint64(1<<15))   // many elements
		f.Add(uint16(page), uint16(24), uint64(page))    // a branch's child is itself
		f.Add(uint16(page), uint16(16), uint64(1)<<40-1) // positions
	}
	path := filepath.Join(f.TempDir(), "spoilt.seg")
	f.Fuzz(func(t *testing.T, page, offset uint16, value uint64) {
		raw := bytes.Clone(base)
		at := (int(page)*PageSize + int(offset)%PageSize) % (len(raw) - 8)
		for i := range 8 {
			raw[at+i] ^= byte(value >> (8 * i))
		}
		// A process of its own for each try would be slow; workers of the fuzzer have a directory each.
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		defer r.Close()
		err = r.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
				return b.ForEach(func(k, v []byte) error {
					if v == nil {
						return b.Bucket(k).ForEach(func(_, v []byte) error { Checksum(v); return nil })
					}
					Checksum(v)
					return nil
				})
			})
		})
		if errors.Is(err, ErrDamaged) {
			t.Fatalf("Inspect passed a file on which bbolt panics: %v", err)
		}
	})
}
