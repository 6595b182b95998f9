package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"wardlink/agent/source"
	"wardlink/buffer"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
	"wardlink/telemetry/line"
	"wardlink/telemetry/seal"
)

// gather is how long a source may wait so that its message shares a commit with others' (DESIGN: 20 ms). Nobody waits when every
// open connection already has: then no one is left to wait for.
const gather = 20 * time.Millisecond

// batchBytes closes a batch: with deflate this stays far below telemetry.MaxFrame.
const batchBytes = 128 << 10

// errStopping answers deliveries that came too late.
var errStopping = errors.New("agent is stopping")

// intake turns deliveries into sealed, durable batches. One goroutine (run) owns numbers, period and commits; accept may be called
// by any number of sources.
//
// Durability: accept returns nil only after buffer.Append returned nil for the batch that holds the message, or after the buffer
// said that an earlier Append did. Only then does the source write its acknowledgement.
type intake struct {
	buf    *buffer.Buffer
	key    seal.PublicKey
	epoch  telemetry.Epoch
	clock  clock
	log    *slog.Logger
	queue  chan *waiting
	open   func() int                                // connections that may still deliver
	noted  func(source string, m *telemetry.Message) // sees each message before it is kept; nil: nobody
	copies *copies
	pulse  chan struct{} // taken by run when it is free for work
	begun  chan struct{} // signalled when a sealing record may wait for its signature

	mu      sync.Mutex
	period  *seal.Period
	signing [16]byte // the period whose record was last given to be signed
	counts  Counts
	lanes   [telemetry.LaneCount]laneAccount
	hour    source.Rate // bytes of frames that became durable
	fault   fault

	next [telemetry.LaneCount]uint64 // owned by run, but for LaneSelf's, which is the reporter's
}

// Counts are the intake's totals since the agent started.
type Counts struct {
	Messages      uint64 `json:"messages"`       // durably buffered
	Resent        uint64 `json:"resent"`         // came again and were known
	Observations  uint64 `json:"observations"`   //
	Waveforms     uint64 `json:"waveforms"`      // chunks of one channel's samples
	NotUnderstood uint64 `json:"not_understood"` // messages kept raw, in whole or part
	Batches       uint64 `json:"batches"`        //
	Failed        uint64 `json:"failed"`         // batches whose commit failed: their numbers are void

	LastStored time.Time `json:"last_stored"`       // when a batch became durable last; zero before the first
	LastFailed time.Time `json:"last_failed"`       // when a commit failed last; zero when none has
	Failure    string    `json:"failure,omitempty"` // what it met
	Full       bool      `json:"full"`              // it met a full buffer or disk: sources are held back until there is room
}

// failing tells whether the last thing that became of a commit is a failure: sources get no acknowledgements.
func (c Counts) failing() bool { return c.LastFailed.After(c.LastStored) }

type waiting struct {
	msg  telemetry.Message
	key  [32]byte // of the message within this gateway
	id   [32]byte // of what its device calls it; zero where that need not be unique
	lane telemetry.Lane
	size int
	raw  []byte
	bare bool // msg holds the bytes as they came and nothing else
	done chan error
}

func newIntake(buf *buffer.Buffer, key seal.PublicKey, epoch telemetry.Epoch, c clock, log *slog.Logger) (*intake, error) {
	in := &intake{
		buf: buf, key: key, epoch: epoch, clock: c, log: log,
		hour: source.Rate{Unit: time.Minute}, queue: make(chan *waiting, 256), open: func() int { return 1 }, copies: newCopies(), pulse: make(chan struct{}),
		begun: make(chan struct{}, 1),
	}
	p, err := seal.NewPeriod(key, epoch, c.now())
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	in.period = p
	return in, nil
}

// accept is source.Accept: it returns when the message is durable. unique says that the source's control ids (MSH-10) are unique, so
// that identical bytes are always one message.
func (in *intake) accept(ctx context.Context, d source.Delivery, unique bool) error {
	if in.noted != nil {
		in.noted(d.Source, &d.Message)
	}
	key := messageKey(d.Source, d.Message.Digest)
	held := func() bool { _, held := in.buf.Known(key); return held }
	if unique && d.Message.ControlID != "" {
		if held() {
			in.count(func(c *Counts) { c.Resent++ })
			return nil // an earlier Append returned nil for this very message
		}
		// Two messages under one id that come at once are both kept: to lose neither comes before telling the device.
		if d.ID != "" {
			if _, reused := in.buf.Known(idKey(d.Source, d.ID)); reused {
				return source.ErrReused
			}
		}
		return in.enqueue(ctx, d, key, 0)
	}
	e, role := in.copies.begin(key, held)
	switch role {
	case resent:
		in.count(func(c *Counts) { c.Resent++ })
		return nil
	case follow:
		select {
		case <-e.done:
			return e.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := in.enqueue(ctx, d, key, e.number)
	in.copies.end(e, err)
	return err
}

// enqueue hands the message to run and waits for its commit.
func (in *intake) enqueue(ctx context.Context, d source.Delivery, key [32]byte, copyNumber uint32) error {
	msg := d.Message
	msg.Source, msg.Received, msg.Copy = d.Source, in.clock.stamp(), copyNumber
	w := &waiting{msg: msg, key: key, lane: laneOf(msg), size: len(d.Raw), raw: d.Raw, done: make(chan error, 1)}
	if d.ID != "" {
		w.id = idKey(d.Source, d.ID)
	}
	select {
	case in.queue <- w:
	case <-ctx.Done():
		return ctx.Err()
	}
	// Once queued, the outcome is waited for even if ctx ends: run always answers.
	return <-w.done
}

// laneOf is the lane in which a message travels, whatever its source speaks.
func laneOf(m telemetry.Message) telemetry.Lane {
	if lane, ours := line.LaneOf(&m); ours {
		return lane
	}
	return hl7.LaneOf(m)
}

// idKey names what a source's device calls a message. It stands beside the message's own key in the same transaction, so that the buffer
// tells a resend, which has both, from another message under the same id.
func idKey(source, id string) [32]byte {
	return messageKey(source, sha256.Sum256([]byte("wardlink/id/1\x00"+id)))
}

// acknowledged is the source's hook: the acknowledgement of these bytes was written to the socket.
func (in *intake) acknowledged(source string, digest [32]byte) {
	in.copies.acknowledged(messageKey(source, digest))
}

// counters is a snapshot.
func (in *intake) counters() Counts {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.counts
}

func (in *intake) count(f func(*Counts)) {
	in.mu.Lock()
	defer in.mu.Unlock()
	f(&in.counts)
}

// run commits batches until ctx ends, then answers what is queued and returns.
func (in *intake) run(ctx context.Context) error {
	defer in.forget()
	for {
		var first *waiting
		select {
		case <-ctx.Done():
			in.refuseQueued()
			return nil
		case <-in.pulse:
			continue
		case first = <-in.queue:
		}
		in.commit(in.collect(ctx, first))
	}
}

// collect takes what else has arrived, and waits a little for more unless waiting cannot help: an alarm is there, the batch is full,
// or every open connection has delivered and waits for its acknowledgement.
func (in *intake) collect(ctx context.Context, first *waiting) []*waiting {
	batch, size := []*waiting{first}, first.size
	urgent := first.lane == telemetry.LaneAlarm
	timer := time.NewTimer(gather)
	defer timer.Stop()
	for size < batchBytes && len(batch) < telemetry.MaxMessages {
		if len(in.queue) == 0 && (urgent || len(batch) >= in.open()) {
			return batch
		}
		select {
		case w := <-in.queue:
			batch, size = append(batch, w), size+w.size
			urgent = urgent || w.lane == telemetry.LaneAlarm
		case <-timer.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// commit seals one batch for each lane touched, appends them in one call and answers everybody. Copies of one message within the
// batch are kept once.
func (in *intake) commit(ws []*waiting) {
	before := in.next
	var lanes [telemetry.LaneCount]telemetry.Batch
	var seen [telemetry.LaneCount][]buffer.Seen
	inBatch := map[[32]byte]bool{}
	var observations, waveforms, raw, messages uint64
	for _, w := range ws {
		if inBatch[w.key] {
			continue
		}
		inBatch[w.key] = true
		messages++
		observations += uint64(len(w.msg.Observations))
		waveforms += uint64(len(w.msg.Waveforms))
		if w.msg.Raw != nil {
			raw++
		}
		lanes[w.lane].Messages = append(lanes[w.lane].Messages, w.msg)
		seen[w.lane] = append(seen[w.lane], buffer.Seen{Digest: w.key, Copy: w.msg.Copy, Mask: 1 << w.lane})
		if w.id != ([32]byte{}) {
			seen[w.lane] = append(seen[w.lane], buffer.Seen{Digest: w.id, Mask: 1 << w.lane})
		}
	}
	items, err := in.sealAll(&lanes, &seen)
	if err != nil {
		in.spend(before, err)
	}
	if err != nil && len(ws) > 1 {
		// One message that cannot be sealed must not hold up its neighbours.
		in.commit(ws[:len(ws)/2])
		in.commit(ws[len(ws)/2:])
		return
	}
	if errors.Is(err, telemetry.ErrTooLarge) && !ws[0].bare {
		// A message whose readings do not fit the format travels as it came: nothing is refused for its content.
		ws[0].msg, ws[0].bare = telemetry.RawOnly(ws[0].msg, ws[0].raw), true
		in.commit(ws)
		return
	}
	if err == nil {
		if err = in.buf.Append(items); err != nil {
			in.spend(before, err)
		} else {
			in.kept(items)
		}
	}
	in.count(func(c *Counts) {
		if err != nil {
			c.Failed += uint64(len(items))
			c.LastFailed, c.Failure, c.Full = time.Now(), err.Error(), errors.Is(err, buffer.ErrFull)
			return
		}
		c.LastStored, c.Failure, c.Full = time.Now(), "", false
		c.Messages += messages
		c.Observations += observations
		c.Waveforms += waveforms
		c.NotUnderstood += raw
		c.Batches += uint64(len(items))
	})
	if err != nil {
		in.log.Error("batch is not durable; its sources get no acknowledgement", "error", err)
	}
	if errors.Is(err, buffer.ErrFull) {
		err = fmt.Errorf("%w: %w", source.ErrFull, err) // the source holds its device back instead of hanging up
	}
	for _, w := range ws {
		w.done <- err
	}
}

func (in *intake) sealAll(lanes *[telemetry.LaneCount]telemetry.Batch, seen *[telemetry.LaneCount][]buffer.Seen) ([]buffer.Item, error) {
	period, err := in.currentPeriod()
	if err != nil {
		return nil, err
	}
	var items []buffer.Item
	for lane := range lanes {
		b := lanes[lane]
		if len(b.Messages) == 0 {
			continue
		}
		b.Boot = in.clock.boot
		plain, err := telemetry.Encode(b)
		if err != nil {
			return nil, fmt.Errorf("encode batch: %w", err)
		}
		number := in.next[lane]
		in.next[lane]++ // used up whatever happens next: a number never names two plaintexts
		count := 0
		for _, m := range b.Messages {
			count += len(m.Observations) + len(m.Waveforms)
		}
		now := in.clock.stamp()
		frame, err := period.Seal(seal.Header{
			Lane: telemetry.Lane(lane), Number: number, Wall: now.Wall, Mono: now.Mono, Count: uint32(count),
		}, plain)
		if err != nil {
			return nil, fmt.Errorf("seal batch: %w", err)
		}
		items = append(items, buffer.Item{
			ID:      buffer.ID{Epoch: in.epoch, Lane: uint8(lane), Number: number},
			Frame:   frame,
			Sealing: period.ID(),
			Record:  period.Record(),
			Seen:    seen[lane],
		})
	}
	return items, nil
}

// currentPeriod begins a new sealing period when the present one is over; the old key is forgotten, and with it the agent's
// ability to read its own backlog.
func (in *intake) currentPeriod() (*seal.Period, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	now := in.clock.now()
	if !in.period.Over(now) {
		return in.period, nil
	}
	p, err := seal.NewPeriod(in.key, in.epoch, now)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	in.period.Forget()
	in.period = p
	return p, nil
}

func (in *intake) forget() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.period.Forget()
}

// refuseQueued answers those who came while the agent stopped: they are not acknowledged and will send again.
func (in *intake) refuseQueued() {
	for {
		select {
		case w := <-in.queue:
			w.done <- errStopping
		default:
			return
		}
	}
}
