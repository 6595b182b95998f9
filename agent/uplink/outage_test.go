package uplink

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/buffer"
	"wardlink/server/journal"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// diskBuffer is a real buffer, filled as an outage fills it.
type diskBuffer struct {
	*buffer.Buffer
	t testing.TB
	w *ward
	p *seal.Period
}

func newDiskBuffer(t testing.TB, w *ward, limit int64) *diskBuffer {
	t.Helper()
	c := buffer.Config{
		Dir: filepath.Join(t.TempDir(), "buffer"), Lanes: []string{"alarm", "vitals", "waveform", "self"}, Order: []string{"alarm", "self", "vitals", "waveform"},
		First: 2, Cap: limit, Verify: func(frame []byte) error { _, err := seal.CheckFrame(frame); return err },
	}
	if err := buffer.Create(c); err != nil {
		t.Fatal(err)
	}
	b := must(buffer.Open(c))(t)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if r, err := buffer.Check(c.Dir, c.Verify); err != nil || len(r.Findings) > 0 {
			t.Errorf("check: %v %v", r.Findings, err)
		}
	})
	return &diskBuffer{Buffer: b, t: t, w: w, p: w.period()}
}

// append seals batches and commits them together.
func (d *diskBuffer) append(lane telemetry.Lane, n, size int) (ids []buffer.ID) {
	d.t.Helper()
	var items []buffer.Item
	record := d.p.Record()
	for _, b := range d.w.batches(d.p, lane, n, size) {
		digest := sha256.Sum256(fmt.Append(nil, b.ID))
		items = append(items, buffer.Item{ID: b.ID, Frame: b.Frame, Sealing: b.Sealing, Record: record, Seen: []buffer.Seen{{Digest: digest, Mask: 1 << lane}}})
		ids = append(ids, b.ID)
	}
	if err := d.Append(items); err != nil {
		d.t.Fatal(err)
	}
	return ids
}

// outage fills the buffer as an outage does: with alarms, and with vitals of as many bytes as asked for.
func (d *diskBuffer) outage(bytes int) (total int) {
	d.t.Helper()
	const size, together = 20_000, 100
	d.append(telemetry.LaneAlarm, 2000, 300)
	for n := 0; n < bytes; n += size * together {
		d.append(telemetry.LaneVitals, together, size)
		total += together
	}
	return total + 2000
}

// place is where in the order of commits a batch stands; -1 while it is not there.
func (j *memJournal) place(id buffer.ID) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, o := range j.order {
		if o == id {
			return i
		}
	}
	return -1
}

// TestAFreshAlarmAfterAnOutage: ten minutes of it are stood for by what they leave, 64 MB of vitals and two thousand alarms. What was raised
// last before the connection comes, and what is raised while all that drains, is in the journal within a window of packets; live vitals
// are; and the backlog goes on in order. The time is printed and not judged.
func TestAFreshAlarmAfterAnOutage(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	d := newDiskBuffer(t, a.ward, 96<<20)
	a.cfg.Buffer = d
	total := d.outage(64 << 20)
	last := d.append(telemetry.LaneAlarm, 1, 300)[0]
	total++
	a.start()
	eventually(t, "the session", func() bool { return a.Status().Connected })
	began := time.Now()
	eventually(t, "the last alarm", func() bool { return h.journal.place(last) >= 0 })
	t.Logf("the alarm was journaled %s after the connection, as number %d", time.Since(began).Round(time.Millisecond), h.journal.place(last))
	if n := h.journal.place(last); n >= takeAtOnce {
		t.Errorf("the last alarm is number %d in the journal; want it among the first %d", n, takeAtOnce)
	}
	eventually(t, "the vitals drain", func() bool { return h.journal.total() > 2200 })
	// Ahead of what is appended now there can be a window in flight, another that was taken, and what comes between two looks of this test.
	const slack = 2 * (window + takeAtOnce)
	for _, lane := range []telemetry.Lane{telemetry.LaneAlarm, telemetry.LaneVitals} {
		before := h.journal.total()
		fresh := d.append(lane, 1, 300)[0]
		total++
		at := time.Now()
		eventually(t, "what is fresh", func() bool { return h.journal.place(fresh) >= 0 })
		t.Logf("a fresh batch of lane %s took %s, %d came before it", lane, time.Since(at).Round(time.Millisecond), h.journal.place(fresh)-before)
		if h.journal.total() == total {
			t.Errorf("all had drained before; the test wants more backlog")
		}
		if n := h.journal.place(fresh) - before; n > slack {
			t.Errorf("%d batches of the backlog came before a fresh one of lane %s; want %d at most", n, lane, slack)
		}
	}
	eventually(t, "everything has come", func() bool { return h.journal.total() == total && a.Status().Acknowledged == uint64(total) })
	d.judgeBacklog(h.journal)
}

// judgeBacklog wants the vitals that waited before the connection, but for the newest few, in order, and every batch once.
func (d *diskBuffer) judgeBacklog(j *memJournal) {
	d.t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	next := uint64(0)
	for _, id := range j.order {
		if telemetry.Lane(id.Lane) == telemetry.LaneVitals && id.Number == next {
			next++
		}
	}
	if next < 3000 {
		d.t.Errorf("the backlog came in order only up to number %d", next)
	}
	for id, n := range j.rows {
		if n != 1 {
			d.t.Errorf("%v was sent %d times", id, n)
		}
	}
}

// BenchmarkFreshAlarm prints how long after the connection, and while the backlog drains, an alarm is in the journal, with fsync at both
// ends. Goal: 1 s.
func BenchmarkFreshAlarm(b *testing.B) {
	var first, later time.Duration
	for range b.N {
		b.StopTimer()
		h := newHospital(b)
		j := newDiskJournal(b)
		h.store = j
		h.start()
		a := newAgent(b, h)
		a.buf.check = func(buffer.ID) error { return nil }
		d := newDiskBuffer(b, a.ward, 96<<20)
		a.cfg.Buffer = d
		total := d.outage(64 << 20)
		last := d.append(telemetry.LaneAlarm, 1, 300)[0]
		b.StartTimer()
		a.start()
		eventually(b, "the session", func() bool { return a.Status().Connected })
		began := time.Now()
		at := j.wait(b, last)
		first = max(first, at.Sub(began))
		eventually(b, "the vitals drain", func() bool { return a.Status().Acknowledged > 2200 })
		began = time.Now()
		fresh := d.append(telemetry.LaneAlarm, 1, 300)[0]
		later = max(later, j.wait(b, fresh).Sub(began))
		eventually(b, "everything has come", func() bool { return a.Status().Acknowledged == uint64(total+2) })
		b.StopTimer()
		a.end()
		h.kill()
	}
	b.ReportMetric(float64(first.Microseconds())/1000, "ms-after-connecting")
	b.ReportMetric(float64(later.Microseconds())/1000, "ms-while-draining")
}

// diskJournal is the real journal; it notes when each batch became durable.
type diskJournal struct {
	*journal.Journal
	mu   sync.Mutex
	when map[buffer.ID]time.Time
}

func newDiskJournal(t testing.TB) *diskJournal {
	t.Helper()
	c := journal.Config{Dir: filepath.Join(t.TempDir(), "journal"), Node: 1, Consumers: []string{"records"}}
	if err := journal.Create(c); err != nil {
		t.Fatal(err)
	}
	j := must(journal.Open(c))(t)
	t.Cleanup(func() { _ = j.Close() })
	return &diskJournal{Journal: j, when: map[buffer.ID]time.Time{}}
}

func (j *diskJournal) Submit(e journal.Entry, done func(uint64, error)) error {
	return j.Journal.Submit(e, func(seq uint64, err error) {
		if row, derr := audit.DecodeRow(e.Head); derr == nil && err == nil && e.Kind == journal.KindPublish {
			j.mu.Lock()
			j.when[buffer.ID{Epoch: row.Epoch, Lane: row.Lane, Number: row.Number}] = time.Now()
			j.mu.Unlock()
		}
		done(seq, err)
	})
}

func (j *diskJournal) wait(t testing.TB, id buffer.ID) (at time.Time) {
	t.Helper()
	eventually(t, "a commit", func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		at = j.when[id]
		return !at.IsZero()
	})
	return at
}
