package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wardlink/buffer/segment"
)

// damageBase makes a buffer with four segments of the vitals lane, the last one as a crash leaves it, and one alarm.
func damageBase(t *testing.T) string {
	t.Helper()
	c := testConfig(filepath.Join(t.TempDir(), "buffer"))
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b, err := open(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Append([]Item{itemOf(1, 0, 0, 100)}); err != nil {
		t.Fatal(err)
	}
	for n := uint64(0); len(b.lanes[1].segs) < 4 || b.lanes[1].current.count < 8; n++ {
		if err := b.Append([]Item{itemOf(1, 1, n, []int{120, 700, 9000}[n%3])}); err != nil {
			t.Fatal(err)
		}
	}
	dir := copyDir(t, c.Dir)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestDamage hurts one file at a time, at every page: nothing of the other files may be lost, what is given out is whole, Check
// tells, and the process lives. It runs in a child, because what it guards against ends a process past all recovering.
func TestDamage(t *testing.T) {
	t.Parallel()
	out, err := itself(t, "damage", damageBase(t), "").Output()
	if err != nil {
		t.Fatalf("the child died: %v; its last cases:\n%s", err, out[max(0, len(out)-600):])
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Logf("%d cases; the last line: %s", len(lines), lines[len(lines)-1])
	if len(lines) < 300 {
		t.Fatalf("only %d cases ran", len(lines))
	}
}

// hurt is one way to damage a file.
type hurt struct {
	name string
	do   func(raw []byte) []byte
}

func hurts(rng *rand.Rand, size int) []hurt {
	var all []hurt
	for page := range size / segment.PageSize {
		at := page * segment.PageSize
		all = append(all,
			hurt{fmt.Sprintf("page %d zero", page), func(raw []byte) []byte { clear(raw[at : at+segment.PageSize]); return raw }},
			hurt{fmt.Sprintf("page %d noise", page), func(raw []byte) []byte {
				for i := range segment.PageSize {
					raw[at+i] = byte(rng.Uint32())
				}
				return raw
			}},
			hurt{fmt.Sprintf("page %d from page 3", page), func(raw []byte) []byte {
				copy(raw[at:at+segment.PageSize], raw[3*segment.PageSize:4*segment.PageSize])
				return raw
			}})
		for range 6 {
			bit := at*8 + rng.IntN(512) // heads and element heads: where the structure is
			all = append(all, hurt{fmt.Sprintf("page %d bit %d", page, bit), func(raw []byte) []byte { raw[bit/8] ^= 1 << (bit % 8); return raw }})
		}
		all = append(all, hurt{fmt.Sprintf("cut at page %d", page), func(raw []byte) []byte { return raw[:at] }},
			hurt{fmt.Sprintf("cut after page %d", page), func(raw []byte) []byte { return raw[:at+1000] }})
	}
	return append(all,
		hurt{"all zero", func(raw []byte) []byte { clear(raw); return raw }},
		hurt{"both meta pages", func(raw []byte) []byte { clear(raw[:2*segment.PageSize]); return raw }},
		hurt{"last byte", func(raw []byte) []byte { raw[len(raw)-1] ^= 1; return raw }})
}

func childDamage(base string) {
	cases, err := damageCases(base)
	if err != nil {
		childDie(err)
	}
	whole := drained(base)
	for _, c := range cases {
		fmt.Println(filepath.Base(c.victim), c.name)
		if err := oneDamage(base, c.victim, c.do(bytes.Clone(c.raw)), c.raw, whole); err != nil {
			childDie(fmt.Errorf("%s: %s: %w", filepath.Base(c.victim), c.name, err))
		}
	}
}

// drained is what an undamaged copy gives out.
func drained(base string) map[ID]string {
	dir, err := os.MkdirTemp("", "wl-damage")
	if err != nil {
		childDie(err)
	}
	defer os.RemoveAll(dir)
	got, _, err := openAndDrain(base, filepath.Join(dir, "b"))
	if err != nil {
		childDie(err)
	}
	return got
}

func openAndDrain(base, dir string) (got map[ID]string, st Stats, err error) {
	if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
		return nil, st, err
	}
	b, err := open(testConfig(dir))
	if err != nil {
		return nil, st, err
	}
	got = map[ID]string{}
	for {
		batches, err := b.Take(7)
		if err != nil {
			return nil, st, err
		}
		if len(batches) == 0 {
			break
		}
		for _, g := range batches {
			got[g.ID] = string(g.Frame)
			b.Known([32]byte{byte(len(got))})
			if _, err := b.Sealing(g.Sealing); err != nil && len(b.Stats().Damaged) == 0 {
				return nil, st, fmt.Errorf("no sealing record for %s", g.ID)
			}
			b.Ack(g.ID)
		}
	}
	st = b.Stats()
	return got, st, b.Close()
}

func oneDamage(base, victim string, raw, former []byte, whole map[ID]string) error {
	if err := os.WriteFile(victim, raw, 0o600); err != nil {
		return err
	}
	defer os.WriteFile(victim, former, 0o600)
	report, err := check(base)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	tmp, err := os.MkdirTemp("", "wl-damage")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	got, st, err := openAndDrain(base, filepath.Join(tmp, "b"))
	if err != nil {
		return err
	}
	lost := 0
	for id, frame := range whole {
		if got[id] == frame {
			continue
		}
		if got[id] != "" {
			return fmt.Errorf("batch %s came out changed", id)
		}
		lost++
	}
	if len(got)+lost != len(whole) {
		return errors.New("a batch came out that was never appended")
	}
	// Whatever is missing must be said, by Check and by the running buffer.
	if lost > 0 {
		explained := len(report.Findings) > 0 || len(report.Notes) > 1
		if !explained {
			return fmt.Errorf("%d batches are missing and Check found nothing", lost)
		}
		if st.Lanes[1].Lost == 0 && len(st.Damaged) == 0 && len(report.Notes) < 2 {
			return fmt.Errorf("%d batches are missing and the buffer does not say so", lost)
		}
	}
	perFile := 0
	for id := range whole {
		if id.Lane == 1 {
			perFile++
		}
	}
	if lost > perFile/2 {
		return fmt.Errorf("%d of %d batches are missing for one damaged file of four", lost, perFile)
	}
	return nil
}
