package buffer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var testLanes = []string{"alarm", "vitals", "self"}

// frameOf is a frame that verifyFrame accepts: body, SHA-256.
func frameOf(id ID, size int) []byte {
	b := append(append([]byte(nil), id.Epoch[:]...), id.Lane)
	b = binary.BigEndian.AppendUint64(b, id.Number)
	for len(b) < size {
		sum := sha256.Sum256(b)
		b = append(b, sum[:min(32, size-len(b))]...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func verifyFrame(frame []byte) error {
	if len(frame) < 32 {
		return errors.New("frame is too short")
	}
	sum := sha256.Sum256(frame[:len(frame)-32])
	if !bytes.Equal(sum[:], frame[len(frame)-32:]) {
		return errors.New("frame checksum does not match")
	}
	return nil
}

func epochOf(n int) (e [16]byte) {
	copy(e[:], fmt.Sprintf("epoch %d", n))
	return e
}

func itemOf(epoch int, lane uint8, number uint64, size int) Item {
	id := ID{Epoch: epochOf(epoch), Lane: lane, Number: number}
	it := Item{ID: id, Frame: frameOf(id, size), Sealing: epochOf(epoch + 1000), Record: []byte("sealing record of the period")}
	it.Seen = []Seen{{Digest: sha256.Sum256(it.Frame), Mask: 1 << lane}}
	return it
}

func testConfig(dir string) Config {
	return Config{Dir: dir, Lanes: testLanes, Cap: 16 << 20, SegmentSize: minSegment, Verify: verifyFrame}
}

// open is Open, but waits for a lock that nobody has taken: a child that another test is just starting has the lock files of this process until
// it becomes its program.
func open(c Config) (b *Buffer, err error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if b, err = Open(c); !errors.Is(err, ErrLocked) || time.Now().After(end) {
			return b, err
		}
	}
}

// check is Check, likewise.
func check(dir string) (r Report, err error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if r, err = Check(dir, verifyFrame); !errors.Is(err, ErrLocked) || time.Now().After(end) {
			return r, err
		}
	}
}

func mustOpen(t testing.TB, c Config) *Buffer {
	t.Helper()
	b, err := open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		// Nobody can forget the check: every buffer that a test opened is verified when the test is over.
		mustCheck(t, c.Dir)
	})
	return b
}

func mustCheck(t testing.TB, dir string) Report {
	t.Helper()
	r, err := check(dir)
	if err != nil {
		t.Error(err)
	}
	for _, f := range r.Findings {
		t.Errorf("check: %s: %s", f.Path, f.Problem)
	}
	return r
}

func fresh(t testing.TB) (Config, *Buffer) {
	t.Helper()
	c := testConfig(filepath.Join(t.TempDir(), "buffer"))
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	return c, mustOpen(t, c)
}

func takeAll(t testing.TB, b *Buffer) []Batch {
	t.Helper()
	var all []Batch
	for {
		got, err := b.Take(100)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			return all
		}
		all = append(all, got...)
	}
}

// copyDir is what a crash leaves: the bytes of every file as they are now.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestAppendTakeAckAcrossRestart(t *testing.T) {
	c, b := fresh(t)
	for n := range uint64(40) {
		items := []Item{itemOf(1, 1, n, 3000)}
		if n%4 == 0 {
			items = append(items, itemOf(1, 0, n/4, 500))
		}
		if err := b.Append(items); err != nil {
			t.Fatal(err)
		}
	}
	all := takeAll(t, b)
	if len(all) != 50 || all[0].ID.Lane != 0 || all[10].ID.Number != 0 || all[10].ID.Lane != 1 {
		t.Fatalf("took %d, first %v, eleventh %v", len(all), all[0].ID, all[10].ID)
	}
	for _, got := range all {
		if !bytes.Equal(got.Frame, frameOf(got.ID, len(got.Frame)-32)) {
			t.Fatalf("batch %s has another frame", got.ID)
		}
		if got.ID.Number != 7 {
			b.Ack(got.ID)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	again := takeAll(t, b)
	if len(again) != 2 || again[0].ID.Number != 7 || again[1].ID.Number != 7 {
		t.Fatalf("after the restart took %v", again)
	}
	if r, err := b.Sealing(epochOf(1001)); err != nil || string(r) != "sealing record of the period" {
		t.Fatalf("sealing record %q, %v", r, err)
	}
	if _, known := b.Known(sha256.Sum256(all[0].Frame)); !known {
		t.Fatal("a message of an acknowledged batch is not known")
	}
}
