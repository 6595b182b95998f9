package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
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

// pattern is the plaintext of a batch, and what is in it.
type pattern struct {
	plain             []byte
	seen              []buffer.Seen
	raw, observations int
}

// patterns is how many batches with one message each are made from messages; after them their contents come again, each sealed anew under
// a number and message digests of its own. Nobody can tell that from outside, and a gigabyte is full in a minute or two.
const patterns = 4096

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
	var made []pattern
	for !enough(done) && s.ctx.Err() == nil {
		var items []buffer.Item
		size := 0
		for size < 200_000 { // one commit
			if messages > 1 || len(made) < patterns {
				p, err := plaintext(epoch, done.batches, messages)
				if err != nil {
					return done, err
				}
				made = append(made[:min(len(made), patterns-1)], p)
			}
			p := made[len(made)-1]
			if messages == 1 {
				p = made[done.batches%len(made)]
			}
			item, err := p.seal(period, epoch, uint64(done.batches))
			if err != nil {
				return done, err
			}
			items, size = append(items, item), size+len(item.Frame)
			done.batches, done.observations = done.batches+1, done.observations+p.observations
			done.bytes, done.raw = done.bytes+int64(len(item.Frame)), done.raw+int64(p.raw)
		}
		if err := b.Append(items); err != nil {
			return done, err
		}
	}
	return done, s.ctx.Err()
}

// plaintext is the batch of a number, a second after the one before.
func plaintext(epoch telemetry.Epoch, number, messages int) (p pattern, err error) {
	b := telemetry.Batch{Boot: [16]byte(epoch)}
	for i := range messages {
		n := number*messages + i
		raw := message(fmt.Sprintf("B%d", n), n)
		m, err := hl7.Understand(raw, hl7.Options{Source: "bed-1"})
		if err != nil || len(m.Problems) > 0 {
			return p, fmt.Errorf("a message of the backlog is not understood: %v %v", m.Problems, err)
		}
		m.Received = telemetry.Stamp{Wall: time.Now().UnixMilli(), Mono: int64(n) * 1000}
		b.Messages = append(b.Messages, m)
		p.seen = append(p.seen, buffer.Seen{Digest: m.Digest, Mask: 1 << telemetry.LaneVitals})
		p.raw, p.observations = p.raw+len(raw), p.observations+len(m.Observations)
	}
	p.plain, err = telemetry.Encode(b)
	return p, err
}

func (p pattern) seal(period *seal.Period, epoch telemetry.Epoch, number uint64) (buffer.Item, error) {
	frame, err := period.Seal(seal.Header{
		Lane: telemetry.LaneVitals, Number: number, Wall: time.Now().UnixMilli(), Mono: int64(number) * 1000, Count: uint32(p.observations),
	}, p.plain)
	if err != nil {
		return buffer.Item{}, err
	}
	seen := slices.Clone(p.seen)
	for i := range seen {
		seen[i].Digest = sha256.Sum256(binary.BigEndian.AppendUint64(seen[i].Digest[:], number))
	}
	return buffer.Item{
		ID: buffer.ID{Epoch: epoch, Lane: uint8(telemetry.LaneVitals), Number: number}, Frame: frame, Sealing: period.ID(), Record: period.Record(), Seen: seen,
	}, nil
}
