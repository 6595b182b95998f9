package buffer

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"wardlink/buffer/segment"
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
	b, err := Open(m.c)
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
func (m *model) told() error {
	m.counts["evictions"]++
	if m.alone {
		m.crashed() // 10
	}
	alarms, idle := m.alarmsEvicted(), 0
	m.b.mu.Lock()
	for _, s := range m.b.lanes[1].segs {
		if !s.writing && !s.soft {
			idle++
		}
	}
	m.b.mu.Unlock()
	if m.alone && alarms > m.evicted && idle > 0 {
		m.t.Errorf("alarms are evicted while vitals have %d files that could go", idle)
	}
	it := itemOf(m.epoch, 2, m.report, 500)
	m.report++
	if err := m.b.Append([]Item{it}); err != nil {
		return err
	}
	m.add(it)
	if m.b.Withdraw(m.unsent) {
		m.have[m.unsent].status, m.have[m.unsent].loose = acked, true
	}
	m.unsent = it.ID
	m.evicted = m.alarmsEvicted()
	return nil
}

func (m *model) alarmsEvicted() (n uint64) {
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	for _, e := range m.b.lanes[0].losses {
		n += e.evicted
	}
	return n
}

// crashed looks at what a crash would leave in the middle of an eviction.
func (m *model) crashed() {
	c := m.c
	c.Dir, c.Report = copyDir(m.t, m.c.Dir), nil
	b, err := Open(c)
	if err != nil {
		m.t.Error(err)
		return
	}
	defer b.Close()
	named := map[ID]bool{}
	for _, a := range b.Accounts() {
		for _, r := range append(append([]Run(nil), a.Held...), a.Lost...) {
			for n := r.First; n <= r.Last; n++ {
				named[ID{a.Epoch, a.Lane, n}] = true
			}
		}
	}
	for id, o := range m.have {
		if (o.status == waits || o.status == isParked || o.status == lost && !o.told) && !named[id] {
			m.t.Errorf("a crash within an eviction: %s is neither held nor lost", id)
		}
	}
}

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
func (m *model) learnLosses() {
	m.t.Helper()
	for _, a := range m.b.Accounts() {
		for _, r := range a.Lost {
			for n := r.First; n <= r.Last && n-r.First < 5000; n++ {
				id := ID{a.Epoch, a.Lane, n}
				b := m.have[id]
				switch {
				case b == nil || b.status == acked:
					if !a.LostUpper && (b == nil || !b.loose) {
						m.t.Fatalf("%s is called lost; known to the model: %t; %+v", id, b != nil, a)
					}
				case m.there(id):
					if !a.LostUpper {
						m.t.Fatalf("%s is called lost and is there", id)
					}
				case a.Lane == 2:
					m.t.Fatalf("a report is lost: %s", id)
				default:
					b.status, b.loose = lost, false
				}
			}
		}
	}
}

func (m *model) there(id ID) bool {
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	return m.b.lanes[id.Lane].find(id) != nil
}

// tell tells the receiver all that is lost.
func (m *model) tell() {
	m.t.Helper()
	var ids []LossID
	for _, a := range m.b.Accounts() {
		if len(a.Lost) > 0 {
			ids = append(ids, a.LossID)
		}
	}
	m.b.Told(ids)
	for _, b := range m.have {
		b.told = b.told || b.status == lost
	}
	m.flush()
}

// wreck spoils a whole file of a buffer that is closed.
func (m *model) wreck() {
	m.t.Helper()
	if err := m.b.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.tight()
	files, err := filepath.Glob(filepath.Join(m.c.Dir, "[av]*.seg"))
	if err != nil {
		m.t.Fatal(err)
	}
	if len(files) > 0 {
		path := files[m.rng.IntN(len(files))]
		raw, err := os.ReadFile(path)
		if err != nil {
			m.t.Fatal(err)
		}
		clear(raw[:2*segment.PageSize])
		clear(raw[len(raw)-200:])
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			m.t.Fatal(err)
		}
		m.counts["files wrecked"]++
	}
	m.open(m.c.Dir)
	m.all(nil)
}

// illness has the disk fail in one way while batches are appended.
func (m *model) illness() {
	m.t.Helper()
	m.fault = []string{"remove", "create", "state"}[m.rng.IntN(3)]
	m.counts["disk faults"]++
	m.b.mu.Lock()
	former := m.b.state
	if m.fault == "state" {
		m.b.state = newAB(m.t, filepath.Join(m.c.Dir, "no directory", "state"))
	}
	m.b.mu.Unlock()
	faulty.Store(m.c.Dir, m.fault)
	for range 30 {
		m.append()
	}
	faulty.Delete(m.c.Dir)
	m.b.mu.Lock()
	m.b.state, m.fault = former, ""
	m.b.mu.Unlock()
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
func (m *model) balance() {
	m.t.Helper()
	m.learnLosses()
	held, gone := map[ID]bool{}, map[ID]bool{}
	for _, a := range m.b.Accounts() {
		into := func(set map[ID]bool, in []Run, upper bool, is func(b *modelBatch) bool) {
			for _, r := range in {
				for n := r.First; n <= r.Last && n-r.First < 5000; n++ {
					id := ID{a.Epoch, a.Lane, n}
					set[id] = true
					if b := m.have[id]; !upper && (b == nil || !is(b)) {
						m.t.Fatalf("%s is in a set of the account where it does not belong; known: %t", id, b != nil)
					}
				}
			}
		}
		into(held, a.Held, a.HeldUpper, func(b *modelBatch) bool { return b.status == waits || b.status == isParked })
		into(gone, a.Lost, a.LostUpper, func(b *modelBatch) bool { return b.status == lost })
	}
	for id, b := range m.have {
		switch {
		case (b.status == waits || b.status == isParked) && !held[id]:
			m.t.Fatalf("%s waits, and the account does not name it", id)
		case b.status == lost && !b.told && !gone[id]:
			m.t.Fatalf("%s is lost, and the account does not name it", id)
		}
	}
}

// faulty are directories whose disk fails, and how. The calls look for it in every test, so that tests may run side by side.
var faulty sync.Map

func init() {
	disk.remove = func(path string) error {
		if how, _ := faulty.Load(filepath.Dir(path)); how == "remove" {
			return syscall.EIO
		}
		return os.Remove(path)
	}
	disk.create = func(path string, size int64, h header) (*segment.File, error) {
		if how, _ := faulty.Load(filepath.Dir(path)); how == "create" {
			return nil, syscall.ENOSPC
		}
		return createSegment(path, size, h)
	}
}
