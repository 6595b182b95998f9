package buffer

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"wardlink/buffer/segment"
)

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

func (m *model) crashed() {
	c := m.c
	c.Dir, c.Report = copyDir(m.t, m.c.Dir), nil
	b, err := open(c)
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

func (m *model) illness() {
	m.t.Helper()
	m.fault = []string{"remove", "create", "state"}[m.rng.IntN(3)]
	m.counts["disk faults"]++
	m.b.mu.Lock()
	m.b.storing.Lock()
	former := m.b.state
	if m.fault == "state" {
		m.b.state = newAB(m.t, filepath.Join(m.c.Dir, "no directory", "state"))
	}
	m.b.storing.Unlock()
	m.b.mu.Unlock()
	faulty.Store(m.c.Dir, m.fault)
	for range 30 {
		m.append()
	}
	faulty.Delete(m.c.Dir)
	m.b.mu.Lock()
	m.b.storing.Lock()
	m.b.state, m.fault = former, ""
	m.b.storing.Unlock()
	m.b.mu.Unlock()
}

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
