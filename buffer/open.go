package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

func beUint64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// Open opens the buffer that Create made. Files of former runs are only read from now on; writing begins in new ones. Damaged files
// are set aside, damaged acknowledgements are forgotten (batches go out again): neither is an error, both are logged and in Stats.
func Open(c Config) (*Buffer, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	if c.Verify == nil {
		return nil, fmt.Errorf("open buffer %s: no Verify given", c.Dir)
	}
	lanes, err := readFormat(c.Dir)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(lanes, c.Lanes) {
		return nil, fmt.Errorf("open buffer %s: its lanes are %q, not %q; lanes are fixed when a buffer is created", c.Dir, lanes, c.Lanes)
	}
	held, err := lock(c.Dir, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	b := &Buffer{c: c, lock: held, changed: make(chan struct{}, 1), dirtied: make(chan struct{}, 1), stop: make(chan struct{}), disk: overhead}
	if err := b.load(); err != nil {
		for _, l := range b.lanes {
			for _, s := range l.segs {
				b.shut(s)
			}
		}
		b.sieve.close()
		return nil, errors.Join(fmt.Errorf("open buffer %s: %w", c.Dir, err), held.Close())
	}
	b.keeper.Add(1)
	go b.keep()
	return b, nil
}

func (b *Buffer) load() error {
	st, err := b.loadState()
	if err != nil {
		return err
	}
	b.parked = st.parked
	for i, name := range b.c.Lanes {
		l := &lane{index: uint8(i), name: name, nextSeq: 1, acks: map[[16]byte]*ranges{}, next: map[[16]byte]uint64{}, losses: map[[16]byte]*loss{}}
		l.kept = len(b.c.Evict) > 0 && !slices.Contains(b.c.Evict, name)
		if i < len(st.lanes) {
			l.nextSeq, l.batches, l.bytes = max(1, st.lanes[i].nextSeq), st.lanes[i].batches, st.lanes[i].bytes
			l.evicted = st.lanes[i].evicted
		}
		b.lanes = append(b.lanes, l)
	}
	for _, name := range b.c.Order {
		l := b.lanes[slices.Index(b.c.Lanes, name)]
		if l.mark = nothingLive; len(b.order) < b.c.First {
			l.mark = everythingLive
		}
		b.order = append(b.order, l)
	}
	for _, name := range b.c.Evict {
		b.evict = append(b.evict, b.lanes[slices.Index(b.c.Lanes, name)])
	}
	for _, e := range st.losses {
		if int(e.lane) < len(b.lanes) {
			b.lanes[e.lane].losses[e.epoch] = &e.loss
		}
	}
	for _, a := range st.acks {
		if int(a.lane) < len(b.lanes) {
			b.lanes[a.lane].acks[a.epoch] = &ranges{spans: a.spans}
		}
	}
	b.setAge(st.delivered)
	if err := b.loadFiles(); err != nil {
		return err
	}
	for _, d := range st.delivered {
		if int(d.lane) < len(b.lanes) {
			for _, s := range b.lanes[d.lane].segs {
				if s.header.seq == d.seq && s.waiting == 0 {
					s.since = d.at
				}
			}
		}
	}
	for id := range b.parked {
		// A batch in a file that cannot be read at present stays parked.
		if int(id.Lane) >= len(b.lanes) || len(b.unread) == 0 && b.lanes[id.Lane].find(id) == nil {
			delete(b.parked, id)
		}
	}
	b.setBadAside()
	b.preallocate()
	b.restock()
	return nil
}

// loadState reads the A/B file. A pair that is damaged, or that the disk cannot read, is set aside: forgetting what was acknowledged
// costs batches sent twice, which the receiver knows by number, while refusing to start would cost new ones.
func (b *Buffer) loadState() (state, error) {
	path := filepath.Join(b.c.Dir, stateName)
	ab, data, err := durable.OpenAB(path, maxState)
	var st state
	if err == nil && data != nil {
		st, err = parseState(data)
	}
	if err == nil {
		b.state = ab
		if st.parked == nil {
			st.parked = map[ID]parked{}
		}
		return st, nil
	}
	if transient(err) || errors.Is(err, durable.ErrNewer) {
		return st, err
	}
	b.c.Log.Error("the acknowledgements are damaged and were set aside; every batch kept here is sent again", "path", path, "error", err)
	for _, suffix := range []string{".a", ".b"} {
		if _, serr := os.Lstat(path + suffix); serr == nil {
			b.moveAside(path+suffix, asideFile{})
		}
	}
	b.state, _, err = durable.OpenAB(path, maxState)
	return state{parked: map[ID]parked{}}, err
}

// loadFiles finds the segments. A name that is not ours is left alone and not counted.
func (b *Buffer) loadFiles() error {
	entries, err := os.ReadDir(b.c.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, path := e.Name(), filepath.Join(b.c.Dir, e.Name())
		switch {
		case strings.HasSuffix(name, segment.TempSuffix):
			// It never became a segment, so nothing in it was ever durable.
			if err := os.Remove(path); err != nil {
				return err
			}
		case strings.HasSuffix(name, segment.DamagedSuffix):
			b.noteDamaged(name, path)
		case name == reserveName:
			if err := b.noteReserve(path); err != nil {
				return err
			}
		default:
			if err := b.loadFile(name, path); err != nil {
				return err
			}
		}
	}
	b.body = nil
	for _, l := range b.lanes {
		l.sort()
		for _, s := range l.segs {
			l.countIn(s)
			b.foundIn(s)
		}
	}
	return nil
}

// foundIn takes what a file holds out of the losses: a crash came between the loss and the end of its file. Under mu.
func (b *Buffer) foundIn(s *seg) {
	if s.waiting > 0 {
		b.found(s.header.lane, s.header.epoch, s.first, s.last)
	}
}

func (b *Buffer) noteDamaged(name, path string) {
	size, err := segment.DiskBytes(path)
	if err != nil {
		b.c.Log.Warn("a file that was set aside cannot be measured", "path", path, "error", err)
	}
	b.disk += size
	f := asideFile{path: path, disk: size}
	if i := strings.Index(name, ".seg"); i >= 0 {
		if lane, seq, ok := parseFileName(name[:i+4]); ok {
			f.lane, f.seq = b.reserveSeq(lane, seq), seq
		}
	}
	if i := slices.IndexFunc(b.damaged, func(o asideFile) bool { return o.path == path }); i >= 0 {
		b.damaged[i] = f // a state file, set aside at this start
	} else {
		b.damaged = append(b.damaged, f)
	}
}

// reserveSeq keeps a sequence number from being used again, and returns its lane.
func (b *Buffer) reserveSeq(name string, seq uint64) *lane {
	i := slices.Index(b.c.Lanes, name)
	if i < 0 {
		return nil
	}
	l := b.lanes[i]
	if seq >= l.nextSeq {
		l.nextSeq = seq + 1
		// Until its own count is known (countIn), the file may hold as many batches as find room in it.
		l.doubt, l.formerEpoch, l.formerNext = uint32(b.c.SegmentSize/minBatch), [16]byte{}, 0
	}
	return l
}

// minBatch is the least a batch occupies in a file, in bytes.
const minBatch = batchMetaSize + 64

func (b *Buffer) loadFile(name, path string) error {
	laneName, seq, ok := parseFileName(name)
	if !ok {
		return nil
	}
	l := b.reserveSeq(laneName, seq)
	if l == nil {
		return nil
	}
	size, err := segment.DiskBytes(path)
	if err != nil {
		return err
	}
	b.disk += size
	s := &seg{path: path, disk: size, tail: noTail}
	if err := b.loadSeg(s, l.index, seq); err != nil {
		b.shut(s)
		if errors.Is(err, durable.ErrNewer) {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err = judge(path, err); ill(err) {
			b.leave(l, seq, path, s.disk, err)
			return nil
		}
		if transient(err) {
			return err
		}
		l.bad = append(l.bad, badFile{seq: seq, path: path, disk: s.disk, cause: err})
		return nil
	}
	l.segs = append(l.segs, s)
	return nil
}

// loadSeg learns what a file holds: from its summary, or, when its writer did not finish it, from the file, which is then finished.
func (b *Buffer) loadSeg(s *seg, lane uint8, seq uint64) error {
	body, err := disk.summary(s.path, b.body)
	if err == nil {
		if s.summary, err = parseSummary(body); err != nil {
			return err
		}
		b.body, s.fine = body, len(s.filter)
	} else if errors.Is(err, segment.ErrUnfinished) {
		if err := b.recover(s); err != nil {
			return err
		}
		if s.soft {
			s.tail = 0 // which commit was the last one does not show
		}
	} else {
		return err
	}
	if s.header.lane != lane || s.header.seq != seq {
		return fmt.Errorf("%w: it says it is segment %d of lane %d", segment.ErrDamaged, s.header.seq, s.header.lane)
	}
	if err := b.settle(s); err != nil {
		return err
	}
	b.sift(s) // the filter lies in body, which the next one takes
	return nil
}

// disk is what can meet a disk that fails. Variables, because no test can make a real one do it.
var disk = struct {
	harden  func(path string) error
	open    func(path string) (*segment.File, error)
	summary func(path string, buf []byte) ([]byte, error)
	create  func(path string, size int64, h header) (*segment.File, error)
	remove  func(path string) error
}{segment.Harden, segment.Open, segment.SummaryIn, createSegment, os.Remove}

// recover reads an unfinished file and finishes it. Before, it makes durable what it is going to read: the last commit may be in the
// page cache only, and nothing of it may count as Known from there. When that fails the file is soft: it is read, and not finished,
// since the next start would trust its summary.
func (b *Buffer) recover(s *seg) error {
	hard := disk.harden(s.path)
	info, err := segment.Inspect(s.path)
	if err != nil {
		return err
	}
	if info.Meta < 2 {
		b.c.Log.Warn("the last commit of a segment is torn; it was not acknowledged unless the disk damaged it later", "path", s.path)
	}
	f, err := segment.Reopen(s.path)
	if err != nil {
		return err
	}
	s.summary, err = scan(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	s.filter = filter(s.filter).folded(s.seen)
	s.checked, s.soft = true, hard != nil
	if s.soft {
		b.c.Log.Error("the last commit of a segment cannot be made durable; it is tried again, and resends are taken until then", "path", s.path, "error", hard)
		return nil
	}
	b.writeSummary(s)
	return nil
}

// writeSummary finishes a file that is not open. Failing costs the next start a scan, nothing else.
func (b *Buffer) writeSummary(s *seg) {
	if err := segment.Finish(s.path, s.summary.encode()); err != nil {
		b.c.Log.Warn("a segment's summary could not be written; the next start reads the whole file", "path", s.path, "error", err)
	} else {
		s.fine = len(s.filter)
	}
	if size, err := segment.DiskBytes(s.path); err == nil {
		b.disk += size - s.disk
		s.disk = size
	}
}

// settle counts how many batches of a segment still wait. Only a segment that is partly acknowledged is read for it.
func (b *Buffer) settle(s *seg) error {
	waiting, err := b.unacked(s)
	if err != nil {
		return err
	}
	s.at, s.waiting = s.first, waiting
	if s.waiting == 0 {
		s.at, s.since = s.last+1, b.age()
	}
	return nil
}

// unacked is how many batches of a segment are not acknowledged.
func (b *Buffer) unacked(s *seg) (n uint64, err error) {
	acks := b.lanes[s.header.lane].acks[s.header.epoch]
	switch {
	case s.count == 0, acks.covers(s.first, s.last):
		return 0, nil
	case !acks.touches(s.first, s.last):
		return s.count, nil
	}
	err = b.read(s, func(tx *bbolt.Tx) error {
		return eachNumber(tx, s.first, func(number uint64) error {
			if !acks.has(number) {
				n++
			}
			return nil
		})
	})
	return n, err
}

// countIn takes a segment into the lane's counters; segments come in order.
func (l *lane) countIn(s *seg) {
	h := s.header
	if next := s.last + 1; s.count > 0 && next > l.next[h.epoch] {
		l.next[h.epoch] = next
	}
	if h.first > l.next[h.epoch] {
		l.next[h.epoch] = h.first
	}
	if h.batches+s.count > l.batches {
		l.batches, l.bytes = h.batches+s.count, h.bytes+s.bytes
	}
	if h.seq+1 == l.nextSeq {
		l.doubt, l.formerEpoch, l.formerNext = 0, h.epoch, l.next[h.epoch]
	}
}
