package buffer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sort"
)

// What losses may take of the state file: so much, and each entry at most so many runs. When they would need more, runs are joined, and
// the entry says that it is an upper bound; when even one run each does not fit, nothing more is evicted.
const (
	maxLosses   = maxState / 4
	maxLossRuns = 64
	lossSize    = 16 + 1 + 1 + 4*8 + 4
	// mostLosses is how many entries of one run each find room: 936 of epoch and lane, each of which stays until the receiver knows it.
	mostLosses = (maxLosses - 4) / (lossSize + spanSize)
)

// episodePause ends an episode of evictions.
const episodePause = 24 * 60 * 60

// loss is what is gone of one epoch and lane: batches that were durable, that nobody acknowledged, and that no readable file holds.
//
// It is stored before the file goes (evict.go, aside), and stays until the receiver knows of it and nothing else of its epoch is left. A
// batch that is there after all is taken out of it: what a crash left in place flows.
type loss struct {
	numbers          ranges
	upper            bool   // numbers names others, too
	next             uint64 // 1 more than the greatest number that is known to have been used
	evicted, damaged uint64 // batches, by cause; of an unknown number the most that it may be
	at               int64  // Unix seconds: the latest

	rev  uint64 // of Buffer.lossRev, when it changed last
	told bool   // the receiver knows it as it is
}

// episode is a time without a day's pause in which a lane's batches were evicted.
type episode struct {
	batches   uint64
	since, at int64 // Unix seconds
}

// deprived is what a file takes with it.
type deprived struct {
	epoch [16]byte
	lane  uint8
	runs  []Run
	count uint64 // batches
	upper bool   // runs name other numbers, too
	next  uint64
}

// lose notes a loss. Under mu.
func (b *Buffer) lose(d deprived, evicted bool) {
	if d.count == 0 || len(d.runs) == 0 {
		return
	}
	l := b.lanes[d.lane]
	e := l.losses[d.epoch]
	if e == nil {
		e = &loss{}
		l.losses[d.epoch] = e
	}
	var joined bool
	e.numbers, joined = joinClosest(rangesOf(Join(append(runs(e.numbers.spans), d.runs...))), maxLossRuns)
	e.upper = e.upper || d.upper || joined
	e.next = max(e.next, d.next)
	e.at = b.c.Now().Unix()
	if evicted {
		e.evicted += d.count
		if e.at-l.evicted.at > episodePause {
			l.evicted = episode{since: e.at}
		}
		l.evicted.batches += d.count
		l.evicted.at = e.at
	} else {
		e.damaged += d.count
		l.lost += d.count
	}
	b.changeLoss(e)
}

func (b *Buffer) changeLoss(e *loss) {
	b.lossRev++
	e.rev, e.told = b.lossRev, false
	b.touch()
}

// found takes numbers out of a loss: they are here, or have arrived. Under mu.
func (b *Buffer) found(lane uint8, epoch [16]byte, from, to uint64) {
	l := b.lanes[lane]
	e := l.losses[epoch]
	if e == nil || !e.numbers.touches(from, to) {
		return
	}
	before := e.numbers.size()
	e.numbers = rangesOf(subtract(runs(e.numbers.spans), &ranges{spans: []span{{from, to}}}))
	n := before - e.numbers.size()
	back := min(n, e.evicted)
	e.evicted -= back
	l.evicted.batches -= min(back, l.evicted.batches)
	e.damaged -= min(n-back, e.damaged)
	if len(e.numbers.spans) == 0 {
		delete(l.losses, epoch)
	} else if e.evicted+e.damaged == 0 { // an upper bound's numbers outlast its count
		e.damaged = 1
	}
	b.changeLoss(e)
}

// LossID names a loss of Accounts as it was then.
type LossID struct {
	Epoch [16]byte
	Lane  uint8
	Rev   uint64
}

// Told says that the receiver durably knows of losses as they were in Accounts. Those of which nothing else is left are forgotten then;
// one that has grown since is not meant. A restart before then only has them told again.
func (b *Buffer) Told(losses []LossID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range losses {
		if b.closed || int(id.Lane) >= len(b.lanes) {
			continue
		}
		if e := b.lanes[id.Lane].losses[id.Epoch]; e != nil && e.rev <= id.Rev && !e.told {
			e.told = true
			b.touch()
		}
	}
}

// joinClosest joins the closest runs until there are at most so many.
func joinClosest(r ranges, most int) (out ranges, joined bool) {
	n := len(r.spans)
	if n <= most {
		return r, false
	}
	gaps := make([]int, n-1)
	for i := range gaps {
		gaps[i] = i
	}
	sort.Slice(gaps, func(i, k int) bool {
		x, y := gaps[i], gaps[k]
		return r.spans[x+1].from-r.spans[x].to > r.spans[y+1].from-r.spans[y].to
	})
	stay := gaps[:most-1]
	sort.Ints(stay)
	from := 0
	for _, at := range stay {
		out.spans = append(out.spans, span{r.spans[from].from, r.spans[at].to})
		from = at + 1
	}
	return ranges{append(out.spans, span{r.spans[from].from, r.spans[n-1].to})}, true
}

func rangesOf(in []Run) (r ranges) {
	for _, x := range in {
		r.spans = append(r.spans, span{x.First, x.Last})
	}
	return r
}

// allLosses are the losses to store, by lane and epoch. Those that the receiver knows and whose epoch is not live are forgotten. Under mu.
func (l *lane) allLosses(live map[[16]byte]bool, out []lossOf) []lossOf {
	from := len(out)
	for epoch, e := range l.losses {
		if e.told && !live[epoch] {
			delete(l.losses, epoch)
			continue
		}
		out = append(out, lossOf{epoch, l.index, *e})
	}
	mine := out[from:]
	sort.Slice(mine, func(i, k int) bool { return bytes.Compare(mine[i].epoch[:], mine[k].epoch[:]) < 0 })
	return out
}

// appendLosses writes losses into maxLosses, with as many runs each as find room there.
func appendLosses(b []byte, all []lossOf) []byte {
	all = all[:min(len(all), mostLosses)]
	most := maxLossRuns
	for ; most > 1; most /= 2 {
		size := 4
		for i := range all {
			size += lossSize + min(len(all[i].numbers.spans), most)*spanSize
		}
		if size <= maxLosses {
			break
		}
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(all)))
	for i := range all {
		e := &all[i]
		numbers, joined := joinClosest(e.numbers, most)
		b = append(append(b, e.epoch[:]...), e.lane, boolByte(e.upper || joined))
		for _, v := range []uint64{e.next, e.evicted, e.damaged, uint64(e.at)} {
			b = binary.BigEndian.AppendUint64(b, v)
		}
		b = appendSpans(b, numbers.spans)
	}
	return b
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func appendSpans(b []byte, spans []span) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(spans)))
	for _, r := range spans {
		b = binary.BigEndian.AppendUint64(b, r.from)
		b = binary.BigEndian.AppendUint64(b, r.to)
	}
	return b
}

func parseLosses(r *reader) (out []lossOf, err error) {
	for n := r.count(lossSize); n > 0 && !r.bad; n-- {
		e := lossOf{epoch: [16]byte(r.take(16)), lane: r.u8()}
		upper := r.u8()
		e.upper, e.next, e.evicted, e.damaged, e.at = upper == 1, r.u64(), r.u64(), r.u64(), int64(r.u64())
		if e.numbers.spans, err = parseSpans(r); err != nil {
			return nil, err
		}
		if upper > 1 || len(e.numbers.spans) == 0 && !r.bad {
			return nil, fmt.Errorf("state: a loss: %w", errFormat)
		}
		out = append(out, e)
	}
	return out, nil
}
