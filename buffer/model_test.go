package buffer

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// The model is a map of batches. Invariants, checked after every step:
//
//  1. What Append said is durable and nobody acknowledged is given out, once, in order of lane and age, unchanged.
//  2. What was acknowledged is not given out; after a crash, what was acknowledged since the last Flush may be, once.
//  3. A parked batch is not given out, also after a restart; parked since the last Flush it may be, after a crash.
//  4. Bytes on disk never exceed the cap, and Append fails with nothing but ErrFull.
//  5. Check finds nothing in a copy of the directory, taken at any time between calls.
//  6. Messages of batches that wait are known.
type model struct {
	t     *testing.T
	rng   *rand.Rand
	c     Config
	b     *Buffer
	epoch int
	next  [3]uint64
	have  map[ID]*modelBatch
	order [3][]ID
}

type modelBatch struct {
	item   Item
	status status
	loose  bool // its status is younger than the last flush
	parked bool // the last flush says that it is parked, whatever became of it since
}

type status int

const (
	waits status = iota
	acked
	isParked
)

func TestModel(t *testing.T) {
	t.Parallel()
	seeds := []uint64{1, 2, uint64(time.Now().UnixNano())}
	for _, seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			c := testConfig(filepath.Join(t.TempDir(), "buffer"))
			c.Cap = 9*minSegment + overhead
			if err := Create(c); err != nil {
				t.Fatal(err)
			}
			m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 0)), c: c, have: map[ID]*modelBatch{}}
			m.open(c.Dir)
			for range 80 {
				switch p := m.rng.IntN(100); {
				case p < 45:
					m.append()
				case p < 75:
					m.takeSome()
				case p < 80:
					m.flush()
				case p < 88:
					m.crash()
				case p < 96:
					m.restart()
				default:
					m.fillAndDrain()
				}
				m.invariants()
			}
			if err := m.b.Close(); err != nil {
				t.Fatal(err)
			}
			mustCheck(t, m.c.Dir)
		})
	}
}

func (m *model) open(dir string) {
	m.t.Helper()
	m.c.Dir = dir
	b, err := Open(m.c)
	if err != nil {
		m.t.Fatal(err)
	}
	m.b = b
	m.epoch++
	m.next = [3]uint64{}
}

// append adds up to four batches over up to two lanes; true when they found room.
func (m *model) append() bool {
	m.t.Helper()
	var items []Item
	for range 1 + m.rng.IntN(4) {
		lane := uint8(m.rng.IntN(2))
		m.next[lane] += uint64(m.rng.IntN(20) / 19) // numbers may be left out
		items = append(items, itemOf(m.epoch, lane, m.next[lane], []int{10, 300, 3000, 30_000}[m.rng.IntN(4)]+m.rng.IntN(300)))
		m.next[lane]++
	}
	err := m.b.Append(items)
	if err != nil && !errors.Is(err, ErrFull) {
		m.t.Fatal(err)
	}
	if err != nil {
		// Some may be there. The model cannot know which: it asks for all, and learns.
		m.learn(items)
		return false
	}
	for _, it := range items {
		m.add(it)
	}
	return true
}

func (m *model) add(it Item) {
	m.have[it.ID] = &modelBatch{item: it}
	m.order[it.ID.Lane] = append(m.order[it.ID.Lane], it.ID)
}

// learn takes over those of the items that the buffer has although their Append failed.
func (m *model) learn(items []Item) {
	for _, it := range items {
		m.b.mu.Lock()
		s := m.b.lanes[it.ID.Lane].find(it.ID)
		m.b.mu.Unlock()
		if s != nil {
			m.add(it)
		}
	}
}

// takeSome takes, and acknowledges, gives back or parks what it got.
func (m *model) takeSome() {
	m.t.Helper()
	got, err := m.b.Take(1 + m.rng.IntN(30))
	if err != nil {
		m.t.Fatal(err)
	}
	m.expect(got, nil)
	for _, g := range got {
		b := m.have[g.ID]
		switch p := m.rng.IntN(40); {
		case p < 28:
			m.b.Ack(g.ID)
			b.status, b.loose = acked, true
		case p == 28:
			m.b.Park(g.ID, "the model says so")
			b.status, b.loose = isParked, true
		default:
			m.b.Release(g.ID)
		}
	}
}

// expect wants got to be the oldest waiting batches of the most urgent lanes; again are those that may come once more.
func (m *model) expect(got []Batch, again map[ID]bool) {
	m.t.Helper()
	i := 0
	for lane := range m.order {
		for _, id := range m.order[lane] {
			if i == len(got) {
				return
			}
			b := m.have[id]
			if got[i].ID == id {
				if b.status != waits && !again[id] {
					m.t.Fatalf("%s was given out with status %d", id, b.status)
				}
				if string(got[i].Frame) != string(b.item.Frame) || got[i].Sealing != b.item.Sealing {
					m.t.Fatalf("%s came out changed", id)
				}
				i++
			} else if b.status == waits {
				m.t.Fatalf("%s waits and was passed over for %s", id, got[i].ID)
			}
		}
	}
	if i < len(got) {
		m.t.Fatalf("%s was given out, out of order or unknown", got[i].ID)
	}
}

func (m *model) flush() {
	m.t.Helper()
	if err := m.b.Flush(); err != nil {
		m.t.Fatal(err)
	}
	m.tight()
}

func (m *model) tight() {
	for _, b := range m.have {
		b.loose, b.parked = false, b.status == isParked
	}
}

func (m *model) restart() {
	m.t.Helper()
	if err := m.b.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.tight()
	m.open(m.c.Dir)
	m.all(nil)
}

// crash goes on with a copy of the directory as it was at an instant.
func (m *model) crash() {
	m.t.Helper()
	dir := copyDir(m.t, m.c.Dir)
	if err := m.b.Close(); err != nil {
		m.t.Fatal(err)
	}
	if err := os.RemoveAll(m.c.Dir); err != nil {
		m.t.Fatal(err)
	}
	again := map[ID]bool{}
	for id, b := range m.have {
		if b.loose {
			again[id] = true
		}
	}
	m.open(dir)
	for id, b := range m.have {
		if _, held := m.b.parked[id]; held && b.status == acked {
			if !b.loose || !b.parked {
				m.t.Fatalf("%s was acknowledged, and is parked", id)
			}
			b.status = isParked // its acknowledgement was not durable, that it was refused is
		}
	}
	m.all(again)
}

// all takes everything, compares, and gives it back.
func (m *model) all(again map[ID]bool) {
	m.t.Helper()
	got := takeAll(m.t, m.b)
	m.expect(got, again)
	seen := map[ID]bool{}
	for _, g := range got {
		if seen[g.ID] {
			m.t.Fatalf("%s was given out twice", g.ID)
		}
		seen[g.ID] = true
		m.have[g.ID].status = waits
		m.b.Release(g.ID)
	}
	for id, b := range m.have {
		if b.status == waits && !seen[id] {
			m.t.Fatalf("%s waits and was not given out", id)
		}
		b.loose = false
	}
}

// fillAndDrain appends until the buffer is full, and acknowledges until it takes batches again.
func (m *model) fillAndDrain() {
	m.t.Helper()
	for range 2000 {
		if !m.append() {
			break
		}
	}
	m.invariants()
	// Parked batches keep their files: give them up, or the buffer fills with them for good.
	for id, b := range m.have {
		if b.status == isParked {
			m.b.Ack(id)
			b.status, b.loose = acked, true
		}
	}
	for _, g := range takeAll(m.t, m.b) {
		m.b.Ack(g.ID)
		m.have[g.ID].status, m.have[g.ID].loose = acked, true
	}
	if !m.append() {
		m.t.Fatal("everything is acknowledged and there is no room")
	}
}

func (m *model) invariants() {
	m.t.Helper()
	st := m.b.Stats()
	if disk := realDisk(m.t, m.c.Dir); disk > m.c.Cap || st.Disk > m.c.Cap {
		m.t.Fatalf("%d bytes on disk, %d by own account, cap %d", disk, st.Disk, m.c.Cap)
	}
	var want, have uint64
	for _, b := range m.have {
		if b.status != acked {
			want++
		}
		if b.status == waits && m.rng.IntN(20) == 0 {
			if _, known := m.b.Known(b.item.Seen[0].Digest); !known {
				m.t.Fatalf("a message of %s is not known", b.item.ID)
			}
		}
	}
	for _, l := range st.Lanes {
		have += l.Waiting
	}
	if have != want || len(st.Damaged) > 0 {
		m.t.Fatalf("%d batches wait, want %d; set aside: %v", have, want, st.Damaged)
	}
	dir := copyDir(m.t, m.c.Dir)
	mustCheck(m.t, dir)
	if err := os.RemoveAll(dir); err != nil {
		m.t.Fatal(err)
	}
	if m.t.Failed() {
		m.t.FailNow()
	}
}
