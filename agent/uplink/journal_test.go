package uplink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"

	"wardlink/audit"
	"wardlink/buffer"
	"wardlink/server/journal"
	"wardlink/server/registry"
)

// memJournal outlives its servers, as a disk does. crash drops what is not committed, without a word to those who wait.
type memJournal struct {
	t     testing.TB
	mu    sync.Mutex
	moved *sync.Cond
	held  bool
	ended bool
	dead  bool // between crash and restart
	n     uint64
	queue []waitingEntry
	rows  map[buffer.ID]int // commits of each batch
	order []buffer.ID       // of the commits
	seals map[string]bool
	event []audit.Event
	done  sync.WaitGroup
}

type waitingEntry struct {
	entry journal.Entry
	done  func(uint64, error)
}

func newMemJournal(t testing.TB) *memJournal {
	j := &memJournal{t: t, rows: make(map[buffer.ID]int), seals: make(map[string]bool)}
	j.moved = sync.NewCond(&j.mu)
	j.done.Go(j.run)
	t.Cleanup(func() { j.set(func() { j.ended = true }); j.done.Wait() })
	return j
}

func (j *memJournal) set(change func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change()
	j.moved.Broadcast()
}

func (j *memJournal) crash()   { j.set(func() { j.queue, j.dead = nil, true }) }
func (j *memJournal) restart() { j.set(func() { j.held, j.dead = false, false }) }

func (j *memJournal) run() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		for !j.ended && (j.held || len(j.queue) == 0) {
			j.moved.Wait()
		}
		if j.ended {
			return
		}
		group := j.queue
		j.queue = nil
		for _, w := range group {
			j.commit(w.entry)
		}
		j.mu.Unlock()
		for _, w := range group {
			w.done(1, nil)
		}
		j.mu.Lock()
	}
}

func (j *memJournal) commit(e journal.Entry) {
	if e.Kind == journal.KindPublish {
		row, err := audit.DecodeRow(e.Head)
		if err != nil {
			j.t.Error(err)
		}
		id := buffer.ID{Epoch: row.Epoch, Lane: row.Lane, Number: row.Number}
		j.rows[id]++
		j.order = append(j.order, id)
		return
	}
	ev, err := audit.DecodeEvent(e.Head)
	if err != nil {
		j.t.Error(err)
	}
	j.event = append(j.event, ev)
}

func (j *memJournal) NextID() audit.EventID {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.n++
	var id audit.EventID
	binary.BigEndian.PutUint64(id[8:], j.n)
	return id
}

func (j *memJournal) Submit(e journal.Entry, done func(uint64, error)) error {
	var err error
	j.set(func() {
		if j.dead {
			err = errors.New("killed")
			return
		}
		j.queue = append(j.queue, waitingEntry{e, done})
	})
	return err
}

func (j *memJournal) Append(ctx context.Context, entries ...journal.Entry) error {
	errs := make(chan error, len(entries))
	for _, e := range entries {
		if err := j.Submit(e, func(_ uint64, err error) { errs <- err }); err != nil {
			return err
		}
	}
	for range entries {
		select {
		case err := <-errs:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (j *memJournal) commits(id buffer.ID) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.rows[id]
}

func (j *memJournal) total() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.rows)
}

func (j *memJournal) queued() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.queue)
}

// publishes gives how many batches wait for their commit.
func (j *memJournal) publishes() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for _, w := range j.queue {
		if w.entry.Kind == journal.KindPublish {
			n++
		}
	}
	return n
}

func (j *memJournal) events(t audit.Type) []audit.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []audit.Event
	for _, ev := range j.event {
		if ev.Type == t {
			found = append(found, ev)
		}
	}
	return found
}

// memRegistry admits gw-1 on the lanes of its mask.
type memRegistry struct{ lanes uint8 }

func (r memRegistry) AdmitKey(_ context.Context, g string, _ [32]byte) (registry.Admission, error) {
	if g != gateway || r.lanes == 0 {
		return registry.Admission{}, fmt.Errorf("gateway %s: %w", g, registry.ErrUnknown)
	}
	return registry.Admission{Gateway: g, Lanes: r.lanes}, nil
}

func (r memRegistry) Revision(context.Context) (int64, error)           { return 1, nil }
func (r memRegistry) CutOff(context.Context) ([]registry.CutOff, error) { return nil, nil }

func (r memRegistry) HoldsNewest(context.Context, string, [32]byte, string) (bool, error) {
	return false, nil
}
