package buffer

import (
	"bytes"
	"testing"
)

func FuzzParseState(f *testing.F) {
	f.Add([]byte{})
	f.Add(state{}.encode())
	f.Add([]byte("\x01\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")) // version 1
	f.Add(state{lanes: []laneState{{1, 2, 3, episode{4, 5, 6}}}, losses: []lossOf{{epochOf(1), 1, loss{numbers: ranges{[]span{{8, 9}, {12, 12}}}, evicted: 3, at: 7}}}, acks: []ackSet{{epochOf(1), 1, []span{{0, 5}, {7, 7}}}},
		parked:    map[ID]parked{{Epoch: epochOf(1), Lane: 1, Number: 6}: {at: 9, reason: "refused"}},
		delivered: []deliveredAt{{1, 4, 1_800_000_000}}}.encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseState(raw)
		if err != nil {
			return
		}
		for _, a := range s.acks {
			r := ranges{spans: a.spans}
			for _, n := range []uint64{0, 6, ^uint64(0)} {
				if had := r.has(n); r.add(n) == had || !r.has(n) || !r.remove(n) || r.has(n) {
					t.Fatalf("set %v does not behave with %d", a.spans, n)
				}
			}
		}
		if len(s.encode()) > maxState {
			t.Fatal("the state outgrows its limit")
		}
	})
}

func FuzzParseSummary(f *testing.F) {
	f.Add([]byte{})
	f.Add(summary{header: header{lane: 1, seq: 4}, count: 2, last: 1, sealings: [][16]byte{epochOf(1)}, filter: make([]byte, 64)}.encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseSummary(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(s.encode(), raw) {
			t.Fatal("another encoding of the same summary was accepted")
		}
		filter(s.filter).may(&[32]byte{})
	})
}

func FuzzParseBatch(f *testing.F) {
	h := header{lane: 1, epoch: epochOf(1)}
	seen := encodeSeen([]Seen{{Mask: 1}})
	f.Add(numberKey(3), encodeMeta(h, 3, epochOf(2), seen, []byte("frame")), seen, []byte("frame"))
	f.Add([]byte{}, []byte{}, []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, meta, seen, frame []byte) {
		if _, err := parseBatch(h, key, meta, seen, frame); err == nil {
			eachSeen(seen, func(Seen) {})
			if len(seen)%seenSize != 0 {
				t.Fatal("a cut-off list of messages was accepted")
			}
		}
		if r, err := parseRecord(key, frame); err == nil && len(r) > len(frame) {
			t.Fatal("a record grew")
		}
	})
}

// FuzzRanges compares the set with the simplest one there is.
func FuzzRanges(f *testing.F) {
	f.Add([]byte{1, 2, 3, 130, 5, 133, 2})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var r ranges
		want := map[uint64]bool{}
		for _, op := range ops {
			n := uint64(op & 0x7F)
			if op&0x80 == 0 {
				if r.add(n) == want[n] {
					t.Fatalf("add %d", n)
				}
				want[n] = true
			} else {
				if r.remove(n) != want[n] {
					t.Fatalf("remove %d", n)
				}
				delete(want, n)
			}
		}
		if r.size() != uint64(len(want)) {
			t.Fatalf("size %d of %d", r.size(), len(want))
		}
		for n := range uint64(129) {
			if r.has(n) != want[n] || r.covers(n, n) != want[n] || r.touches(n, n) != want[n] {
				t.Fatalf("number %d", n)
			}
		}
		for i, s := range r.spans {
			if s.from > s.to || i > 0 && s.from <= r.spans[i-1].to+1 {
				t.Fatalf("runs %v", r.spans)
			}
		}
	})
}
