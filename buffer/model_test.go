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
//  1. What Append said is durable and nobody acknowledged is given out, once, in order of lane and age, unchanged; or it is lost, and named.
//  2. What was acknowledged is not given out; after a crash, what was acknowledged since the last Flush may be, once.
//  3. A parked batch is not given out, also after a restart; parked since the last Flush it may be, after a crash.
//  4. Bytes on disk never exceed the cap, and Append fails with nothing but ErrFull; where lanes may be evicted, not for want of room.
//  5. Check finds nothing in a copy of the directory, taken at any time between calls.
//  6. Messages of batches that wait are known.
//  7. The account: of the numbers assigned, each is exactly one of acknowledged, held (parked or not), lost, and void (left out, or of an Append
//     that failed). Held and lost are what Accounts says: exactly, or as an upper bound that says so.
//  8. A loss stays lost and named, whatever crashes, until its receiver was told and nothing of its epoch is left.
//  9. Nothing is evicted while a less urgent lane has a file that could go; nothing of lane self is, ever.
//  10. At the instant of a report of an eviction a crash loses nothing that is not named: the file is there, or the loss is durable.
//
// A seed is printed; WARDLINK_SEED repeats it.
type model struct {
	t     *testing.T
	rng   *rand.Rand
	c     Config
	b     *Buffer
	epoch int
	next  [3]uint64
	have  map[ID]*modelBatch
	order [3][]ID

	alone   bool // the Append that runs is for one lane, so that a copy of the directory is one instant
	report  uint64
	unsent  ID
	evicted uint64 // alarms, at the last report
	fault   string
	now     time.Time
	counts  map[string]int
}

type modelBatch struct {
	item   Item
	status status
	loose  bool // its status is younger than the last flush
	parked bool // the last flush says that it is parked, whatever became of it since
	told   bool // of a lost one: the receiver knows
}

type status int

const (
	waits status = iota
	acked
	isParked
	lost
)

func TestModel(t *testing.T) {
	t.Parallel()
	seeds := []uint64{1, 2, uint64(time.Now().UnixNano()) | 1}
	if env := os.Getenv("WARDLINK_SEED"); env != "" {
		seed, err := strconv.ParseUint(env, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			t.Logf("WARDLINK_SEED=%d", seed)
			c := testConfig(filepath.Join(t.TempDir(), "buffer"))
			c.Cap = 9*minSegment + overhead
			if seed%2 == 1 { // with an even seed a full buffer says so
				c.Evict = []string{"vitals", "alarm"}
			}
			if err := Create(c); err != nil {
				t.Fatal(err)
			}
			m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 0)), c: c, have: map[ID]*modelBatch{}, now: time.Now(), counts: map[string]int{}}
			m.c.Now = func() time.Time { return m.now }
			m.c.Report = m.told
			m.open(c.Dir)
			for range 80 {
				m.step()
				m.invariants()
			}
			if err := m.b.Close(); err != nil {
				t.Fatal(err)
			}
			mustCheck(t, m.c.Dir)
			m.total()
			t.Logf("%d batches: %v", len(m.have), m.counts)
		})
	}
}

func (m *model) step() {
	switch p := m.rng.IntN(100); {
	case p < 38:
		m.append()
	case p < 62:
		m.takeSome()
		m.offerAgain()
	case p < 66:
		m.flush()
	case p < 74:
		m.crash()
	case p < 80:
		m.restart()
	case p < 83:
		m.wreck()
	case p < 88:
		m.tell()
	case p < 91:
		m.now = m.now.Add(time.Duration(m.rng.Int64N(2e15) - 1e15)) // twelve days to either side
		m.b.mu.Lock()
		m.b.expire()
		m.b.mu.Unlock()
	case p < 95:
		m.illness()
	default:
		m.fillAndDrain()
	}
}

// total counts what became of all batches.
func (m *model) total() {
	for _, b := range m.have {
		m.counts[[]string{"waiting", "acknowledged", "parked", "lost"}[b.status]]++
	}
}

func (m *model) open(dir string) {
	m.t.Helper()
	m.c.Dir = dir
	b, err := open(m.c)
	if err != nil {
		m.t.Fatal(err)
	}
	m.b = b
	m.epoch++
	m.next = [3]uint64{}
	m.report, m.unsent = 0, ID{Lane: 99}
	m.learnLosses()
}

// told is Config.Report: a report on lane self, in the place of the one before.
// crashed looks at what a crash would leave in the middle of an eviction.
// append adds up to four batches over up to two lanes; true when they found room.
func (m *model) append() bool {
	m.t.Helper()
	var items []Item
	m.alone = m.rng.IntN(3) == 0
	only := uint8(m.rng.IntN(2))
	for range 1 + m.rng.IntN(4) {
		lane := uint8(m.rng.IntN(2))
		if m.alone {
			lane = only
		}
		m.next[lane] += uint64(m.rng.IntN(20) / 19) // numbers may be left out
		items = append(items, itemOf(m.epoch, lane, m.next[lane], []int{10, 300, 3000, 30_000}[m.rng.IntN(4)]+m.rng.IntN(300)))
		m.next[lane]++
	}
	m.evicted = m.alarmsEvicted()
	err := m.b.Append(items)
	if err != nil && !errors.Is(err, ErrFull) {
		m.t.Fatal(err)
	}
	if err != nil {
		// Some may be there. The model cannot know which: it asks for all, and learns.
		m.learn(items)
		m.learnLosses()
		if len(m.c.Evict) > 0 && m.fault == "" {
			m.t.Fatalf("no room although there is something to evict: %v", err)
		}
		return false
	}
	for _, it := range items {
		m.add(it)
	}
	m.learnLosses()
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
		l := m.b.lanes[it.ID.Lane]
		e := l.losses[it.ID.Epoch]
		there := l.find(it.ID) != nil || e != nil && e.numbers.has(it.ID.Number)
		m.b.mu.Unlock()
		if there {
			m.add(it)
		}
	}
}

// learnLosses believes the buffer what it says is lost, if it may be: it is not there, and nobody acknowledged it.
// tell tells the receiver all that is lost.
// wreck spoils a whole file of a buffer that is closed.
// illness has the disk fail in one way while batches are appended.
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
			b.status, b.loose, b.parked = isParked, true, true // the second's write may come at any time
		default:
			m.b.Release(g.ID)
		}
	}
}

// offerAgain takes a parked batch once more.
func (m *model) offerAgain() {
	m.t.Helper()
	g, ok, err := m.b.TakeParked()
	if err != nil {
		m.t.Fatal(err)
	}
	m.learnLosses()
	if !ok {
		return
	}
	b := m.have[g.ID]
	if b == nil || b.status != isParked && !b.parked || string(g.Frame) != string(b.item.Frame) || g.Sealing != b.item.Sealing {
		m.t.Fatalf("%s was offered again, and is %+v", g.ID, b)
	}
	m.counts["offered again"]++
	switch b.loose = true; m.rng.IntN(3) {
	case 0:
		m.b.Ack(g.ID)
		b.status = acked
	case 1:
		m.b.Park(g.ID, "the model says so again")
	default:
		m.b.Release(g.ID)
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
		if seen[g.ID] || m.have[g.ID].status == lost {
			m.t.Fatalf("%s was given out twice, or is lost", g.ID)
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
	for n := m.counts["evictions"]; m.append() && m.counts["evictions"] < n+4; {
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
	if len(m.b.Stats().Damaged) < 2 && !m.append() {
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
		if b.status == waits || b.status == isParked {
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
	if have != want || len(st.Damaged) > m.counts["files wrecked"] {
		m.t.Fatalf("%d batches wait, want %d; set aside: %v", have, want, st.Damaged)
	}
	m.balance()
	dir := copyDir(m.t, m.c.Dir)
	mustCheck(m.t, dir)
	if err := os.RemoveAll(dir); err != nil {
		m.t.Fatal(err)
	}
	if m.t.Failed() {
		m.t.FailNow()
	}
}

// balance is invariants 7 and 8.
// faulty are directories whose disk fails, and how. The calls look for it in every test, so that tests may run side by side.
