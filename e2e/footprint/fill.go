package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"time"

	"wardlink/buffer"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
	"wardlink/telemetry/seal"
)

// backlog is what fill has put into a buffer.
type backlog struct {
	batches, observations int
	bytes, raw            int64 // of sealed frames, and of the HL7 that they hold
}

// fill makes the buffer of a gateway that was cut off: batches of so many messages each, as an agent seals them, until enough says so.
func (s *stage) fill(state string, messages int, enough func(backlog) bool) (done backlog, err error) {
	kit, err := s.kit()
	if err != nil {
		return done, err
	}
	if err := os.MkdirAll(s.path(state), 0o700); err != nil {
		return done, err
	}
	var lanes []string
	for l := range telemetry.Lane(telemetry.LaneCount) {
		lanes = append(lanes, l.String())
	}
	c := buffer.Config{Dir: s.path(state + "/buffer"), Lanes: lanes, Order: lanes, Cap: 4 << 30, Verify: func(frame []byte) error { _, err := seal.CheckFrame(frame); return err }}
	if err := buffer.Create(c); err != nil {
		return done, err
	}
	b, err := buffer.Open(c)
	if err != nil {
		return done, err
	}
	defer func() {
		if e := b.Close(); err == nil {
			err = e
		}
	}()
	var epoch telemetry.Epoch
	rand.Read(epoch[:])
	begin := time.Now()
	period, err := seal.NewPeriod(kit.RecordsKey, epoch, begin)
	if err != nil {
		return done, err
	}
	for !enough(done) && s.ctx.Err() == nil {
		var items []buffer.Item
		size := 0
		for size < 200_000 { // one commit
			item, raw, n, err := batch(period, epoch, uint64(done.batches), messages)
			if err != nil {
				return done, err
			}
			items, size = append(items, item), size+len(item.Frame)
			done.batches, done.observations = done.batches+1, done.observations+n
			done.bytes, done.raw = done.bytes+int64(len(item.Frame)), done.raw+int64(raw)
		}
		if err := b.Append(items); err != nil {
			return done, err
		}
	}
	return done, s.ctx.Err()
}

// batch is one of an hour's, a second after the one before.
func batch(period *seal.Period, epoch telemetry.Epoch, number uint64, messages int) (item buffer.Item, rawBytes, observations int, err error) {
	b := telemetry.Batch{Boot: [16]byte(epoch)}
	var seen []buffer.Seen
	wall := time.Now().UnixMilli()
	for i := range messages {
		n := int(number)*messages + i
		raw := message(fmt.Sprintf("B%d", n), n)
		m, err := hl7.Understand(raw, hl7.Options{Source: "bed-1"})
		if err != nil || len(m.Problems) > 0 {
			return item, 0, 0, fmt.Errorf("a message of the backlog is not understood: %v %v", m.Problems, err)
		}
		m.Received = telemetry.Stamp{Wall: wall, Mono: int64(n) * 1000}
		b.Messages = append(b.Messages, m)
		seen = append(seen, buffer.Seen{Digest: m.Digest, Mask: 1 << telemetry.LaneVitals})
		rawBytes, observations = rawBytes+len(raw), observations+len(m.Observations)
	}
	plain, err := telemetry.Encode(b)
	if err != nil {
		return item, 0, 0, err
	}
	frame, err := period.Seal(seal.Header{Lane: telemetry.LaneVitals, Number: number, Wall: wall, Mono: int64(number) * 1000, Count: uint32(observations)}, plain)
	if err != nil {
		return item, 0, 0, err
	}
	return buffer.Item{
		ID: buffer.ID{Epoch: epoch, Lane: uint8(telemetry.LaneVitals), Number: number}, Frame: frame, Sealing: period.ID(), Record: period.Record(), Seen: seen,
	}, rawBytes, observations, nil
}
