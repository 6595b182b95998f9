package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/telemetry/seal"
)

// heldJournal is a journal that commits in groups, and only while it is not held. It is stricter than the real one: an id or a head
// that is not what the kind demands, an id that comes twice or a call after close fails the test.
type heldJournal struct {
	t       testing.TB
	mu      sync.Mutex
	moved   *sync.Cond
	held    bool
	closed  bool
	fail    error // given to the next groups instead of a commit
	refuse  error // given by Submit
	counter uint64
	ids     map[audit.EventID]bool
	queue   []waitingEntry
	done    []journal.Entry
	running sync.WaitGroup
}

type waitingEntry struct {
	entry journal.Entry
	done  func(uint64, error)
}

func newJournal(t testing.TB) *heldJournal {
	j := &heldJournal{t: t, ids: make(map[audit.EventID]bool)}
	j.moved = sync.NewCond(&j.mu)
	j.running.Go(j.run)
	return j
}

func (j *heldJournal) run() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		for !j.closed && (j.held || len(j.queue) == 0) {
			j.moved.Wait()
		}
		if len(j.queue) == 0 && j.closed {
			return
		}
		group, err := j.queue, j.fail
		j.queue = nil
		for i := range group {
			if err == nil {
				group[i].entry.Seq = uint64(len(j.done) + 1)
				j.done = append(j.done, group[i].entry)
			}
		}
		j.moved.Broadcast()
		j.mu.Unlock()
		for _, w := range group {
			w.done(w.entry.Seq, err)
		}
		j.mu.Lock()
	}
}

func (j *heldJournal) close() {
	j.mu.Lock()
	j.closed = true
	j.moved.Broadcast()
	j.mu.Unlock()
	j.running.Wait()
}

func (j *heldJournal) NextID() audit.EventID {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counter++
	var id audit.EventID
	binary.BigEndian.PutUint64(id[8:], j.counter)
	return id
}

func (j *heldJournal) Submit(e journal.Entry, done func(uint64, error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.refuse != nil {
		return j.refuse
	}
	if j.closed {
		j.t.Error("journal: submit after close")
		return errors.New("closed")
	}
	if e.ID == (audit.EventID{}) || j.ids[e.ID] {
		j.t.Errorf("journal: id %s is zero or comes twice", e.ID)
	}
	j.ids[e.ID] = true
	if err := strict(e); err != nil {
		j.t.Errorf("journal: %v", err)
	}
	j.queue = append(j.queue, waitingEntry{e, done})
	j.moved.Broadcast()
	return nil
}

func strict(e journal.Entry) error {
	switch e.Kind {
	case journal.KindPublish:
		row, err := audit.DecodeRow(e.Head)
		if err != nil {
			return err
		}
		if row.ID != e.ID || row.Frame != seal.FrameHash(e.Blob) || row.Session == (audit.EventID{}) {
			return errors.New("row does not describe its entry")
		}
	case journal.KindEvent, journal.KindSealing:
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			return err
		}
		if ev.ID != e.ID || (e.Kind == journal.KindSealing) != (ev.Type == audit.SealingBrought) || (len(e.Blob) > 0) != (e.Kind == journal.KindSealing) {
			return fmt.Errorf("event %s does not fit its entry", ev.Type)
		}
	default:
		return fmt.Errorf("kind %d", e.Kind)
	}
	return nil
}

func (j *heldJournal) Append(ctx context.Context, entries ...journal.Entry) error {
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

func (j *heldJournal) set(change func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change()
	j.moved.Broadcast()
}

func (j *heldJournal) hold()    { j.set(func() { j.held = true }) }
func (j *heldJournal) release() { j.set(func() { j.held = false }) }

// queued gives how many entries wait for their commit.
func (j *heldJournal) queued() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.queue)
}

// events gives the committed events of a type.
func (j *heldJournal) events(t audit.Type) []audit.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []audit.Event
	for _, e := range j.done {
		if e.Kind == journal.KindPublish {
			continue
		}
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			j.t.Error(err)
		}
		if ev.Type == t {
			found = append(found, ev)
		}
	}
	return found
}

// rows gives the committed publishes in order.
func (j *heldJournal) rows() []audit.Row {
	j.mu.Lock()
	defer j.mu.Unlock()
	var rows []audit.Row
	for _, e := range j.done {
		if e.Kind == journal.KindPublish {
			row, err := audit.DecodeRow(e.Head)
			if err != nil {
				j.t.Error(err)
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// fakeRegistry admits whom it is told to, on all lanes unless told otherwise.
type fakeRegistry struct {
	mu       sync.Mutex
	revision int64
	err      error
	lanes    map[string]uint8
	held     bool // all are in quarantine
	until    map[string]time.Time
	window   *registry.WindowError // for all
	inactive map[string]bool
	cut      registry.State // of the revoked, as CutOff says it
	revoked  map[string]bool
	retired  map[[32]byte]string      // keys of replaced boards, and whose they were
	takes    map[string]time.Duration // how long a question waits for its answer, by method; also Passed of a cell
	newest   map[string]newestKey
	unsure   error // given by HoldsNewest
}

type newestKey struct {
	spki   [32]byte
	serial string
}

func newRegistry(gateways ...string) *fakeRegistry {
	r := &fakeRegistry{lanes: make(map[string]uint8), inactive: make(map[string]bool), newest: make(map[string]newestKey), revoked: make(map[string]bool),
		retired: make(map[[32]byte]string), takes: make(map[string]time.Duration)}
	for _, g := range gateways {
		r.lanes[g] = 0x0f
	}
	return r
}

func (r *fakeRegistry) AdmitKey(ctx context.Context, gateway string, key [32]byte) (registry.Admission, error) {
	if err := r.answer(ctx, "AdmitKey"); err != nil {
		return registry.Admission{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	lanes, known := r.lanes[gateway]
	switch {
	case r.err != nil:
		return registry.Admission{}, r.err
	case !known:
		return registry.Admission{}, fmt.Errorf("gateway %s: %w", gateway, registry.ErrUnknown)
	case r.revoked[gateway]:
		return registry.Admission{}, &registry.RevokedError{Gateway: gateway, Reason: "stolen"}
	case r.retired[key] != "":
		return registry.Admission{}, &registry.RetiredError{Gateway: gateway, Reason: "broken"}
	case r.window != nil:
		return registry.Admission{}, r.window
	case r.inactive[gateway]:
		return registry.Admission{}, fmt.Errorf("gateway %s: %w", gateway, registry.ErrNotActive)
	}
	return registry.Admission{Gateway: gateway, Lanes: lanes, Until: r.until[gateway], Quarantined: r.held}, nil
}

// answer waits for as long as a question takes, or for the end of its time.
func (r *fakeRegistry) answer(ctx context.Context, question string) error {
	r.mu.Lock()
	takes := r.takes[question]
	r.mu.Unlock()
	select {
	case <-time.After(takes):
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *fakeRegistry) Revision(ctx context.Context) (int64, error) {
	if err := r.answer(ctx, "Revision"); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.revision, r.err
}

func (r *fakeRegistry) CutOff(ctx context.Context) (out []registry.CutOff, err error) {
	if err := r.answer(ctx, "CutOff"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range slices.Sorted(maps.Keys(r.revoked)) {
		out = append(out, registry.CutOff{Gateway: g, State: r.cut})
	}
	for key, g := range r.retired {
		out = append(out, registry.CutOff{Gateway: g, Key: key})
	}
	return out, r.err
}

func (r *fakeRegistry) HoldsNewest(_ context.Context, gateway string, spki [32]byte, serial string) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.newest[gateway] == newestKey{spki, serial}, r.unsure
}

func (r *fakeRegistry) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	r.revision++
}
