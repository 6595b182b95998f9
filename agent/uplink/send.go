package uplink

import (
	"context"
	"errors"
	"fmt"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"wardlink/buffer"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// takeAtOnce is how many batches are taken together. Few, so that during a long drain an alarm is asked for after every few batches
// of the backlog.
const takeAtOnce = 16

// room reports whether another packet may be in flight.
func (l *link) room() bool {
	return len(l.flight) < window && l.bytes < l.pace.most && len(l.held) < window && len(l.kept)+len(l.u.doubted) < maxKept && len(l.brought) < maxBrought
}

// fill takes batches and sends them until the window is full or nothing is left. An error ends the connection.
func (l *link) fill(ctx context.Context) error {
	for l.room() && ctx.Err() == nil {
		if len(l.queue) == 0 {
			if l.empty {
				return l.bring(ctx)
			}
			n := min(takeAtOnce, window-len(l.flight))
			if l.pace.most < windowBytes/2 {
				n = 1 // what is taken stands before an alarm that comes then, and on a slow line for long
			}
			batches, err := l.u.cfg.Buffer.Take(n)
			l.queue = append(l.queue[:0], batches...)
			if err != nil { // of a file that the disk does not give up at the moment: what comes meanwhile must not wait for a connection
				l.u.fault(fmt.Errorf("buffer: %w", err))
				l.later()
			}
			if len(l.queue) == 0 {
				l.empty = true
				continue
			}
		}
		b := l.queue[0]
		if err := l.send(ctx, b); err != nil {
			return err // b is still in the queue, and so given back
		}
		l.queue[0] = buffer.Batch{}
		l.queue = l.queue[1:]
	}
	if len(l.brought) >= maxBrought && len(l.flight) == 0 {
		return errors.New("a new connection is needed: this one has carried as many sealing records as the server allows")
	}
	return nil
}

// bringAtOnce is how many batches are in flight that the hospital asked for again: what is new waits behind no more than these.
const bringAtOnce = 8

// maxUnwanted bounds what is remembered of refusals of batches that were sent again.
const maxUnwanted = 4096

// bring sends batches once more that the hospital has lost. Not on a provisional session: who is on that line may be nobody's hospital.
func (l *link) bring(ctx context.Context) error {
	for l.u.cfg.Again != nil && l.t.judge == nil && len(l.bringing) < bringAtOnce && l.room() && ctx.Err() == nil {
		batches, err := l.u.cfg.Again(1)
		if err != nil {
			return fmt.Errorf("buffer: %w", err)
		}
		if len(batches) == 0 {
			break
		}
		for _, b := range batches {
			if l.u.unwanted[b.ID] || l.bringing[b.ID] { // on its way: the hospital has asked twice
				continue
			}
			l.bringing[b.ID] = true
			if err := l.send(ctx, b); err != nil {
				return err
			}
		}
	}
	return l.try(ctx)
}

// try sends one batch that was refused before, when nothing else waits or is on its way: what a refusal costs, which is the connection, nothing
// else pays.
func (l *link) try(ctx context.Context) error {
	from, some := l.u.cfg.Buffer.(Parked)
	if !some || l.t.judge != nil || l.trying != nil || len(l.flight)+len(l.held)+len(l.bringing) > 0 || ctx.Err() != nil {
		return nil
	}
	b, ok, err := from.TakeParked()
	if err != nil {
		return fmt.Errorf("buffer: %w", err)
	}
	if !ok {
		return nil
	}
	l.trying = &b.ID
	if err := l.send(ctx, b); err != nil {
		l.queue = append(l.queue, b) // given back at the connection's end
		return err
	}
	return nil
}

// tried notes that a batch that was sent again has met its fate.
func (l *link) tried(id buffer.ID) (was bool) {
	if was = l.trying != nil && *l.trying == id; was {
		l.trying = nil
	}
	return was
}

// send puts a batch in flight, or parks it, or holds it until its sealing record can be had. The frame's hash is checked here, so
// that a batch that a bad disk has damaged is reported and not refused by the server, over and over.
func (l *link) send(ctx context.Context, b buffer.Batch) error {
	h, err := seal.CheckFrame(b.Frame)
	switch {
	case err != nil:
		l.park(b.ID, "frame is damaged: "+err.Error())
		return nil
	case h.Epoch != telemetry.Epoch(b.ID.Epoch) || uint8(h.Lane) != b.ID.Lane || h.Number != b.ID.Number || h.Sealing != b.Sealing:
		l.park(b.ID, "frame is that of another batch")
		return nil
	}
	if !l.brought[b.Sealing] {
		signed, err := l.sealing(ctx, b.Sealing)
		switch {
		case errors.Is(err, ErrNoSealing):
			l.park(b.ID, "sealing record does not exist")
			return nil
		case err != nil:
			l.hold(b)
			return nil
		}
		if err := l.publish(ctx, job{telemetry.KeyTopic(l.t.gateway), signed}, flight{}); err != nil {
			return err
		}
		l.brought[b.Sealing] = true
	}
	if err := l.publish(ctx, job{l.topics[b.ID.Lane], b.Frame}, flight{batch: true, id: b.ID, size: len(b.Frame)}); err != nil {
		return err
	}
	l.bytes += len(b.Frame)
	if l.bringing[b.ID] {
		return nil
	}
	l.u.note(func(s *Status) {
		s.Published++
		lane := &s.Lanes[b.ID.Lane]
		lane.Published++
		lane.PublishedAt = time.Now()
	})
	return nil
}

// sealing asks for a sealing record, unless it could not be had a moment ago.
func (l *link) sealing(ctx context.Context, id [16]byte) ([]byte, error) {
	if l.missing[id] {
		return nil, errWaiting
	}
	ctx, cancel := context.WithTimeout(ctx, l.u.timing.write)
	defer cancel()
	signed, err := l.u.cfg.Sealing(ctx, id)
	if err == nil && len(signed) > telemetry.MaxDocument {
		err = fmt.Errorf("%d bytes, at most %d are allowed: %w", len(signed), telemetry.MaxDocument, ErrNoSealing)
	}
	if err != nil && ctx.Err() == nil {
		l.u.fault(fmt.Errorf("sealing record %x: %w", id, err))
	}
	return signed, err
}

// hold keeps a batch aside so that those of other sealing periods can go on.
func (l *link) hold(b buffer.Batch) {
	l.missing[b.Sealing] = true
	l.held = append(l.held, b)
	l.later()
}

// later has again called in a while.
func (l *link) later() {
	if l.retry == nil {
		l.retry = time.After(l.u.timing.sealing)
	}
}

// again tries what was held, and what the buffer could not give.
func (l *link) again() {
	l.queue = append(l.held, l.queue...)
	l.held, l.retry, l.empty = nil, nil, false
	clear(l.missing)
}

// publish hands a packet to paho and enters it into the flight.
func (l *link) publish(ctx context.Context, j job, f flight) error {
	select {
	case l.jobs <- j:
	case <-l.guard.gone:
		return errGone
	}
	done := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case token := <-l.sent:
			f.token, f.at = token, time.Now()
			l.flight = append(l.flight, f)
			return nil
		case <-l.guard.gone:
			return errGone
		case <-done:
			done = nil
			timer := time.NewTimer(l.u.timing.drain)
			defer timer.Stop()
			late = timer.C
		case <-late:
			return errGone
		}
	}
}

// deliver is paho's callback: it may not block.
func (l *link) deliver(_ paho.Client, m paho.Message) {
	select {
	case l.inbox <- m:
	default:
		l.u.note(func(s *Status) { s.Dropped++ })
	}
}

// read takes in all documents that have come.
func (l *link) read() {
	for {
		select {
		case m := <-l.inbox:
			l.document(m)
		default:
			return
		}
	}
}

// document takes one document of the server. Ours are the hello, a hint and a refusal; that can at worst park a batch, which is kept and reported. On a
// provisional session it does not even that.
func (l *link) document(m paho.Message) {
	gateway, doc, err := telemetry.ParseDown(m.Topic())
	if err != nil || gateway != l.t.gateway {
		l.u.log.Warn("the server pushed a document on a topic that is not this gateway's")
		return
	}
	if doc == telemetry.DocHello {
		l.u.welcome(m.Payload())
		return
	}
	if doc == telemetry.DocHint {
		l.u.hinted(m.Payload(), time.Now())
		return
	}
	if doc != telemetry.DocRefused {
		if l.u.cfg.Down != nil {
			l.u.cfg.Down(doc, m.Payload())
		}
		return
	}
	r, err := telemetry.DecodeRefusal(m.Payload())
	if err != nil {
		l.u.log.Warn("the server sent a refusal that cannot be read", "error", err)
		return
	}
	id := buffer.ID{Epoch: r.Epoch, Lane: uint8(r.Lane), Number: r.Number}
	for i, f := range l.flight {
		if f.batch && f.id == id {
			l.flight = append(l.flight[:i], l.flight[i+1:]...)
			l.bytes -= f.size
			if l.t.judge != nil {
				l.u.doubted = append(l.u.doubted, id)
				return
			}
			if l.trying == nil || *l.trying != id { // a lane does not rest for what was refused before
				l.u.barred.refusal(r.Lane, l.u.timing, time.Now())
			}
			l.park(id, "refused by the server: "+r.Reason)
			return
		}
	}
	l.u.log.Warn("the server refused a batch that is not in flight", "batch", telemetry.BatchID{Epoch: r.Epoch, Lane: r.Lane, Number: r.Number}.String())
}

// park sets a batch aside.
func (l *link) park(id buffer.ID, reason string) {
	if l.bringing[id] {
		delete(l.bringing, id)
		if len(l.u.unwanted) < maxUnwanted {
			l.u.unwanted[id] = true
		}
		l.u.log.Warn("a batch that the hospital asked for again is not taken", "reason", reason,
			"batch", telemetry.BatchID{Epoch: id.Epoch, Lane: telemetry.Lane(id.Lane), Number: id.Number}.String())
		return
	}
	l.tried(id)
	l.u.cfg.Buffer.Park(id, reason)
	l.u.note(func(s *Status) { s.Parked++ })
	l.u.log.Warn("batch is parked", "reason", reason,
		"batch", telemetry.BatchID{Epoch: id.Epoch, Lane: telemetry.Lane(id.Lane), Number: id.Number}.String())
}
