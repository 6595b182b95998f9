package buffer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
	"wardlink/internal/mounttest"
)

// salvageItem has a frame that says how long it is: mark, length, lane, epoch, number, body, SHA-256.
func salvageItem(epoch int, lane uint8, number uint64, size int) Item {
	it := itemOf(epoch, lane, number, size)
	b := append([]byte("TFR1"), 0, 0, 0, 0, lane)
	b = append(b, it.ID.Epoch[:]...)
	b = binary.BigEndian.AppendUint64(b, number)
	b = append(b, bytes.Repeat([]byte{byte(number)}, size)...)
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)+32))
	sum := sha256.Sum256(b)
	it.Frame = append(b, sum[:]...)
	return it
}

func recognise(data []byte) (Batch, bool) {
	if len(data) < 33+32 || string(data[:4]) != "TFR1" {
		return Batch{}, false
	}
	n := uint64(binary.BigEndian.Uint32(data[4:]))
	if n < 33+32 || n > uint64(len(data)) {
		return Batch{}, false
	}
	data = data[:n]
	sum := sha256.Sum256(data[:n-32])
	id := ID{Lane: data[8], Epoch: [16]byte(data[9:]), Number: binary.BigEndian.Uint64(data[25:])}
	return Batch{ID: id, Frame: data}, bytes.Equal(sum[:], data[n-32:])
}

func salvageOf(dir string, all bool) SalvageConfig {
	return SalvageConfig{Dir: dir, Recognise: recognise, Mark: []byte("TFR1"), MaxFrame: 64 << 10, All: all}
}

// salvageAll gives the numbers found of each lane, and fails on a batch that comes twice.
func salvageAll(t *testing.T, c SalvageConfig) (got map[ID]bool, lanes []Salvaged, problems []Finding) {
	t.Helper()
	got = map[ID]bool{}
	lanes, problems, err := Salvage(c, func(b Batch) error {
		if got[b.ID] {
			t.Errorf("batch %s comes twice", b.ID)
		}
		if again, ok := recognise(b.Frame); !ok || len(again.Frame) != len(b.Frame) {
			t.Errorf("batch %s is not whole", b.ID)
		}
		got[b.ID] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, lanes, problems
}

// salvageBase is a buffer as a crash leaves it: an alarm, several segments of vitals, of which the first batches are acknowledged and one is
// parked. It gives the directory's copy and how many vitals there are.
func salvageBase(t *testing.T) (dir string, vitals uint64) {
	t.Helper()
	c, b := fresh(t)
	if err := b.Append([]Item{salvageItem(1, 0, 0, 100)}); err != nil {
		t.Fatal(err)
	}
	for ; len(b.lanes[1].segs) < 3 || b.lanes[1].current.count < 8; vitals++ {
		if err := b.Append([]Item{salvageItem(1, 1, vitals, []int{120, 700, 9000}[vitals%3])}); err != nil {
			t.Fatal(err)
		}
	}
	var acked, parked bool
	for !acked || !parked {
		batches, err := b.Take(64)
		if err != nil {
			t.Fatal(err)
		}
		for _, batch := range batches {
			switch {
			case batch.ID.Lane == 1 && batch.ID.Number < 3:
				b.Ack(batch.ID)
				acked = acked || batch.ID.Number == 2
			case batch.ID.Lane == 1 && batch.ID.Number == 5:
				b.Park(batch.ID, "refused")
				parked = true
			}
		}
		if len(batches) == 0 {
			break
		}
	}
	if !acked || !parked {
		t.Fatal("nothing was acknowledged or parked")
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	return copyDir(t, c.Dir), vitals
}

// TestSalvageReadsWhatIsWhole: a directory that nobody may write gives everything that was not delivered, once, parked batches too, and is as
// it was afterwards; with All, what was delivered as well.
func TestSalvageReadsWhatIsWhole(t *testing.T) {
	dir, vitals := salvageBase(t)
	before := contents(t, dir)
	got, lanes, problems := salvageAll(t, salvageOf(dir, false))
	if len(problems) > 0 {
		t.Errorf("problems: %+v", problems)
	}
	if uint64(len(got)) != 1+vitals-3 || lanes[0].Found != 1 || lanes[1].Found != vitals || lanes[1].Delivered != 3 || lanes[1].Parked != 1 || lanes[1].Damaged+lanes[1].Unknown != 0 {
		t.Errorf("%d batches, %+v; expected all of %d but 3", len(got), lanes, vitals)
	}
	if all, _, _ := salvageAll(t, salvageOf(dir, true)); uint64(len(all)) != 1+vitals {
		t.Errorf("with all: %d batches of %d", len(all), 1+vitals)
	}
	for name, was := range before {
		if now := contents(t, dir)[name]; now != was {
			t.Errorf("%s was changed", name)
		}
	}
	if len(contents(t, dir)) != len(before) {
		t.Error("files were made or removed")
	}
}

// TestSalvageOfDamage hurts each page of each segment in turn: what lies in other pages comes out, and what does not is told.
func TestSalvageOfDamage(t *testing.T) {
	dir, vitals := salvageBase(t)
	files, err := filepath.Glob(filepath.Join(dir, "vitals-*.seg"))
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	whole, _, _ := salvageAll(t, salvageOf(dir, true))
	most := 0
	defer func() { t.Logf("of %d batches a page cost at most %d", len(whole), most) }()
	for _, path := range []string{files[0], files[len(files)-1]} {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := segment.Inspect(path)
		if err != nil {
			t.Fatal(err)
		}
		for page := range info.Used / segment.PageSize {
			hurt := bytes.Clone(raw)
			clear(hurt[page*segment.PageSize : (page+1)*segment.PageSize])
			if err := os.WriteFile(path, hurt, 0o600); err != nil {
				t.Fatal(err)
			}
			got, lanes, problems := salvageAll(t, salvageOf(dir, true))
			missing := 0
			for id := range whole {
				if !got[id] {
					missing++
				}
			}
			most = max(most, missing)
			// A page holds a few small batches, or a part of one or two; the others' bytes are elsewhere.
			if missing > 8 || len(got)+missing != len(whole) {
				t.Errorf("%s page %d: %d of %d batches are missing", filepath.Base(path), page, missing, len(whole))
			}
			if missing > 0 && (len(problems) == 0 || lanes[1].Damaged+lanes[1].Unknown < uint64(missing)) {
				t.Errorf("%s page %d: %d batches are missing, and it says %+v %+v", filepath.Base(path), page, missing, lanes[1], problems)
			}
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A file that an agent had set aside is read like the others.
	if err := os.Rename(files[1], files[1]+segment.DamagedSuffix); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := salvageAll(t, salvageOf(dir, true)); uint64(len(got)) != 1+vitals {
		t.Errorf("with a file set aside: %d batches of %d", len(got), 1+vitals)
	}
	// Without the acknowledgements everything counts as undelivered.
	for _, suffix := range []string{".a", ".b"} {
		if err := os.WriteFile(filepath.Join(dir, stateName+suffix), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, _, problems := salvageAll(t, salvageOf(dir, false))
	if uint64(len(got)) != 1+vitals || len(problems) != 1 || !strings.Contains(problems[0].Problem, "what was delivered cannot be read") {
		t.Errorf("without a state: %d batches, %+v", len(got), problems)
	}
}

// TestSalvageRefuses a buffer in use, and ends with the receiver's own error.
func TestSalvageRefuses(t *testing.T) {
	c, b := fresh(t)
	if err := b.Append([]Item{salvageItem(1, 0, 0, 100)}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Salvage(salvageOf(c.Dir, false), nil); !errors.Is(err, ErrLocked) {
		t.Errorf("in use: %v", err)
	}
	full := errors.New("the server is full")
	dir := copyDir(t, c.Dir)
	if err := os.Remove(filepath.Join(dir, lockName)); err != nil { // a copy of the files alone
		t.Fatal(err)
	}
	if _, _, err := Salvage(salvageOf(dir, false), func(Batch) error { return full }); !errors.Is(err, full) {
		t.Errorf("a receiver that fails: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, lockName)); err == nil {
		t.Error("a lock file was made")
	}
	if _, _, err := Salvage(salvageOf(t.TempDir(), false), nil); !errors.Is(err, ErrMissing) {
		t.Errorf("no buffer: %v", err)
	}
}

// TestSalvageTellsOfEviction that nobody had heard of when the gateway died.
func TestSalvageTellsOfEviction(t *testing.T) {
	dir, _ := salvageBase(t)
	ab, data, err := durable.OpenAB(filepath.Join(dir, stateName), maxState)
	if err != nil {
		t.Fatal(err)
	}
	st, err := parseState(data)
	if err != nil {
		t.Fatal(err)
	}
	l := lossOf{epoch: epochOf(1), lane: 1, loss: loss{evicted: 7, next: 1007}}
	for n := uint64(1000); n < 1007; n++ {
		l.numbers.add(n)
	}
	st.losses = append(st.losses, l)
	if err := ab.Store(st.encode()); err != nil {
		t.Fatal(err)
	}
	if _, lanes, _ := salvageAll(t, salvageOf(dir, false)); lanes[1].Evicted != 7 || lanes[0].Evicted != 0 {
		t.Errorf("%+v", lanes)
	}
}

// TestSalvageOnAReadOnlyMount: the lock is looked at and nothing is made.
func TestSalvageOnAReadOnlyMount(t *testing.T) {
	if !mounttest.Inside(t) {
		return
	}
	dir, vitals := salvageBase(t)
	card := filepath.Join(t.TempDir(), "card")
	disk := mounttest.Mount(t, card, "32m")
	if err := os.CopyFS(filepath.Join(card, "buffer"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	disk.ReadOnly()
	if err := os.WriteFile(filepath.Join(card, "x"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("the mount can be written to: %v", err)
	}
	if got, _, problems := salvageAll(t, salvageOf(filepath.Join(card, "buffer"), true)); uint64(len(got)) != 1+vitals || len(problems) > 0 {
		t.Errorf("%d batches of %d, %+v", len(got), 1+vitals, problems)
	}
}

// TestSalvageStops: a file that is full of what looks like frames, and holds none, can be left.
func TestSalvageStops(t *testing.T) {
	dir, _ := salvageBase(t)
	segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	mark := append([]byte("TFR1"), 0, 0, 0xea, 0x60, 0) // 60,000 bytes each, or so it says
	if err := os.WriteFile(segments[0]+segment.DamagedSuffix, bytes.Repeat(mark, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	c, asked, enough := salvageOf(dir, true), 0, errors.New("enough")
	c.Stop = func() error {
		if asked++; asked > 100 {
			return enough
		}
		return nil
	}
	tried, limit := 0, c.Recognise
	c.Recognise = func(data []byte) (Batch, bool) {
		if tried++; tried > 100_000 {
			t.Fatal("it goes on")
		}
		return limit(data)
	}
	if _, _, err := Salvage(c, func(Batch) error { return nil }); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}

// TestSalvageOpensNothingButFiles: whoever had the card can have put a pipe, a device or a link in the place of a file, or a file without end.
// None is opened, whoever runs the salvage; the rest comes in.
func TestSalvageOpensNothingButFiles(t *testing.T) {
	dir, _ := salvageBase(t)
	want, _, _ := salvageAll(t, salvageOf(dir, false))
	segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(segments) < 3 {
		t.Fatal(segments, err)
	}
	for name, put := range map[string]func(path string) error{
		"pipe": func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link": func(path string) error { return os.Symlink("/dev/zero", path) },
		"file without end": func(path string) error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(path, 1<<42)
		},
	} {
		for _, at := range []string{formatName, lockName, stateName + ".a", filepath.Base(segments[0]), filepath.Base(segments[0]) + segment.DamagedSuffix} {
			t.Run(name+" for "+at, func(t *testing.T) {
				dir := copyDir(t, dir)
				path := filepath.Join(dir, at)
				if err := os.Remove(path); err != nil && !strings.HasSuffix(at, segment.DamagedSuffix) {
					t.Fatal(err)
				}
				if err := put(path); err != nil {
					t.Fatal(err)
				}
				got := map[ID]bool{}
				_, problems, err := Salvage(salvageOf(dir, true), func(b Batch) error { got[b.ID] = true; return nil })
				switch {
				case at == formatName || at == lockName && name != "file without end":
					if err == nil || !strings.Contains(err.Error(), at) {
						t.Errorf("%v", err)
					}
				case err != nil:
					t.Error(err)
				case at == lockName, at == stateName+".a" && name == "file without end": // its twin is read
				case len(problems) == 0:
					t.Error("nothing is said")
				case strings.HasSuffix(at, segment.DamagedSuffix) && len(got) < len(want):
					t.Errorf("%d batches; %d are there", len(got), len(want))
				case len(got) == 0:
					t.Error("nothing comes in")
				}
			})
		}
	}
}
