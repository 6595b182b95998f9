package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

func TestVerify(t *testing.T) {
	for _, leaves := range []int{0, 1, 2, 255, 256, 257, 513} {
		m := newMaker(t)
		for i := range leaves {
			if i%3 == 2 {
				m.window(1 + i%5)
			} else {
				m.event()
			}
		}
		m.publish()
		r, err := Verify(m.dir, m.vkey)
		if err != nil {
			t.Fatalf("%d leaves: %v", leaves, err)
		}
		if r.Size != uint64(leaves) || r.Leaves != r.Size || r.Events+r.Windows != r.Leaves || r.Events+r.Rows != m.pos || r.Detailed != r.Rows {
			t.Errorf("%d leaves, %d acts: %+v", leaves, m.pos, r)
		}
	}
}

// TestVerifyTail: leaves that are integrated and not signed for, and files of windows still to come, are told and no doubt.
func TestVerifyTail(t *testing.T) {
	m := newMaker(t)
	for range 255 {
		m.event()
	}
	var tail [][]byte
	for n := range uint64(3) {
		ev, err := EncodeEvent(testEvent(1000 + n))
		m.must(err)
		tail = append(tail, ev)
	}
	m.publish(tail...)
	m.put(WindowFile(2000, 2001, RowsSuffix), make([]byte, 64))
	m.put(WindowFile(2000, 2001, DetailSuffix), []byte{1})
	m.put("windows/0000000000/000/.x.tmp1", nil)
	r, err := Verify(m.dir, m.vkey)
	if err != nil || r.Unpublished != 3 || r.Pending != 1 || r.Strays != 1 || r.UnpublishedEvents != 3 || r.Leaves != 255 || r.Events != 255 || r.Size != 255 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestVerifyCountsOnlyWhatIsSigned: who can write the directory, and has no key, can add leaves past the checkpoint and set the
// writer's tree state. They may be told of, and never as verified.
func TestVerifyCountsOnlyWhatIsSigned(t *testing.T) {
	m := newMaker(t)
	baseLog(m)
	signed := len(m.leaves)
	want := Report{Origin: testOrigin, Size: 4, Leaves: 4, Events: 2, Windows: 2, Rows: 8, Detailed: 8, First: testEvent(1).Time, Latest: testEvent(10).Time}
	m.event()
	m.window(3)
	added := m.leaves[signed:]
	m.leaves = m.leaves[:signed]
	m.publish(added...)
	got, err := Verify(m.dir, m.vkey)
	want.Root, want.Unpublished, want.UnpublishedEvents, want.UnpublishedWindows, want.UnpublishedRows = m.root(m.leaves), 2, 1, 1, 3
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

// TestVerifyDoubts lists what a log's own key holder might sign; each must be found and named.
func TestVerifyDoubts(t *testing.T) {
	base := baseLog
	for name, c := range map[string]struct {
		make func(m *maker)
		want string
	}{
		"event id twice": {func(m *maker) { base(m); m.leaf(EncodeEvent(testEvent(1))); m.publish() }, "occurs twice"},
		"row id twice": {func(m *maker) {
			base(m)
			m.window(3, func(_ int, r *Row) { r.ID = testID(500) })
			m.publish()
		}, "occurs twice"},
		"windows overlap": {func(m *maker) { base(m); m.pos -= 2; m.window(4); m.publish() }, "overlap"},
		"not a leaf":      {func(m *maker) { base(m); m.leaf([]byte("hello"), nil); m.publish() }, "leaf 4"},
		"window root": {func(m *maker) {
			base(m)
			w := m.window(4)
			w.Root[0] ^= 1
			data, err := EncodeWindow(w)
			m.must(err)
			m.leaves[len(m.leaves)-1] = data
			m.publish()
		}, "root is not the leaf's"},
		"window count": {func(m *maker) {
			base(m)
			w := m.window(4)
			w.Count--
			data, err := EncodeWindow(w)
			m.must(err)
			m.leaves[len(m.leaves)-1] = data
			m.publish()
		}, "4 on disk, 3 in the leaf"},
		"window id": {func(m *maker) {
			base(m)
			w := m.window(4)
			w.ID[0] ^= 1
			data, err := EncodeWindow(w)
			m.must(err)
			m.leaves[len(m.leaves)-1] = data
			m.publish()
		}, "does not follow from its range"},
	} {
		t.Run(name, func(t *testing.T) { expectDoubt(t, c.make, c.want) })
	}
}

// baseLog makes four leaves over ten acts.
func baseLog(m *maker) {
	m.event()
	m.window(5)
	m.event()
	m.window(3)
}

func expectDoubt(t *testing.T, make func(m *maker), want string) {
	t.Helper()
	m := newMaker(t)
	make(m)
	_, err := Verify(m.dir, m.vkey)
	var doubt *DoubtError
	if !errors.As(err, &doubt) || !strings.Contains(err.Error(), want) {
		t.Errorf("Verify: %v; expected %q", err, want)
	}
}

// TestVerifyDamage lists what may befall the files; each must be found and named.
func TestVerifyDamage(t *testing.T) {
	base := baseLog
	for name, c := range map[string]struct {
		make func(m *maker)
		want string
	}{
		"row hashes gone": {func(m *maker) { base(m); m.publish(); m.remove(WindowFile(2, 6, RowsSuffix)) }, "no such file"},
		"window unlogged": {func(m *maker) { base(m); m.publish(); m.put(WindowFile(3, 4, RowsSuffix), nil) }, "no leaf stands for it"},
		"window misplaced": {func(m *maker) {
			base(m)
			m.publish()
			m.put("windows/"+filepath.Base(WindowFile(2, 6, RowsSuffix)), nil)
		}, "wrong directory"},
		"other origin": {func(m *maker) {
			base(m)
			signed := string(m.publish())
			m.put(CheckpointFile, []byte(strings.ReplaceAll(signed, "log/1", "log/2")))
		}, "checkpoint"},
		"origin under another's key": {func(m *maker) {
			base(m)
			m.publish()
			text := fmt.Sprintf("ward.example/log/2\n4\n%s\n", m.root(m.leaves))
			signed, err := note.Sign(&note.Note{Text: text}, m.signer)
			m.must(err)
			m.put(CheckpointFile, signed)
		}, "the key belongs to"},
		"no checkpoint": {func(m *maker) { base(m); m.publish(); m.remove(CheckpointFile) }, "no such file"},
		"root":          {func(m *maker) { base(m); m.publish(); m.sign(4, m.root(m.leaves[:3])) }, "root of 4 leaves"},
		"fewer leaves":  {func(m *maker) { base(m); m.publish(); m.sign(9, m.root(m.leaves)) }, "one of them was put back"},
		"checkpoint put back": {func(m *maker) {
			base(m)
			m.pos = 100_000 // 100 s later by the leaves' own clock
			m.event()
			m.pos = 200_000
			m.event()
			m.publish()
			m.sign(4, m.root(m.leaves[:4]))
		}, "it was put back"},
		"bundle gone":     {func(m *maker) { base(m); m.publish(); m.remove("tile/entries/000.p/4") }, "no such file"},
		"tile gone":       {func(m *maker) { base(m); m.publish(); m.remove("tile/0/000.p/4") }, "no such file"},
		"tree state root": {func(m *maker) { base(m); m.publish(); m.put(".state/treeState", []byte(`{"size":4,"root":"AAAA"}`)) }, "expected JSON"},
	} {
		t.Run(name, func(t *testing.T) { expectDoubt(t, c.make, c.want) })
	}
}

func (m *maker) remove(name string) {
	m.t.Helper()
	m.must(os.Remove(filepath.Join(m.dir, name)))
}

func TestVerifyOlder(t *testing.T) {
	m := newMaker(t)
	var kept [][]byte
	for range 5 {
		m.event()
		kept = append(kept, m.publish())
	}
	if _, err := VerifyWith(m.dir, m.vkey, Options{Older: kept}); err != nil {
		t.Error(err)
	}
	fork := newMaker(t)
	fork.vkey, fork.signer = m.vkey, m.signer
	fork.pos = 100
	fork.event()
	other := fork.publish()
	for name, old := range map[string][]byte{"forked": other, "newer": m.sign(6, m.root(m.leaves)), "no note": []byte("x")} {
		m.publish()
		if _, err := VerifyWith(m.dir, m.vkey, Options{Older: [][]byte{old}}); err == nil {
			t.Errorf("%s: the older checkpoint does not fit and nothing was found", name)
		}
	}
}

func TestVerifyDetail(t *testing.T) {
	m := newMaker(t)
	m.window(4)
	w := m.window(4)
	m.publish()
	m.remove(WindowFile(1, 4, DetailSuffix))
	for since, sound := range map[int64]bool{0: true, w.Time: true, 1: false} {
		if r, err := VerifyWith(m.dir, m.vkey, Options{DetailSince: since}); (err == nil) != sound || r.Detailed != 4 {
			t.Errorf("rows due since %d: %+v, %v", since, r, err)
		}
	}
}

func TestFindingsAreBounded(t *testing.T) {
	m := newMaker(t)
	for range 150 {
		m.leaf([]byte("hello"), nil)
	}
	m.publish()
	_, err := Verify(m.dir, m.vkey)
	var doubt *DoubtError
	if !errors.As(err, &doubt) || len(doubt.Findings) != maxFindings || doubt.More != 50 {
		t.Errorf("%d findings and %d more", len(doubt.Findings), doubt.More)
	}
}
