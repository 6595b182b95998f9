package buffer

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

// Finding is something wrong with a file.
type Finding struct {
	Path    string `json:"path"` // base name
	Problem string `json:"problem"`
}

// Report is what Check found.
type Report struct {
	Lanes    []LaneReport `json:"lanes"`
	Disk     int64        `json:"disk"`     // bytes that all files occupy
	Damaged  []string     `json:"damaged"`  // base names of files that were set aside earlier
	Findings []Finding    `json:"findings"` // what breaks an invariant of FORMAT.md
	Notes    []Finding    `json:"notes"`    // what a crash explains
}

// LaneReport counts one lane, in batches where nothing else is said.
type LaneReport struct {
	Name     string `json:"name"`
	Segments int    `json:"segments"`
	Batches  uint64 `json:"batches"`
	Acked    uint64 `json:"acked"`   // of Batches
	Parked   uint64 `json:"parked"`  // of Batches
	Bytes    uint64 `json:"bytes"`   // of frames
	Evicted  uint64 `json:"evicted"` // by the state: deleted undelivered, of epochs that still count
	Lost     uint64 `json:"lost"`    // by the state: damaged; with an upper bound, at most
	// Missing is how many batches the counters say were in files that are damaged now; MissingDoubt how many more it may be.
	Missing      uint64 `json:"missing"`
	MissingDoubt uint64 `json:"missing_doubt"`
}

// OK is true when nothing was found and nothing was set aside.
func (r Report) OK() bool { return len(r.Findings) == 0 && len(r.Damaged) == 0 }

// Check reads everything in a buffer's directory and compares it with FORMAT.md. It writes nothing, and refuses with ErrLocked while
// the buffer is open. verify checks a frame without any key; nil leaves the frames to their checksums. The error says that the check
// could not be made; what it found wrong is in the Report.
func Check(dir string, verify func([]byte) error) (Report, error) {
	names, err := readFormat(dir)
	if err != nil {
		return Report{}, err
	}
	held, err := lock(dir, syscall.LOCK_SH)
	if err != nil {
		return Report{}, err
	}
	defer held.Close()
	c := &checker{dir: dir, verify: verify, lanes: make([]checkedLane, len(names))}
	for i, name := range names {
		c.lanes[i].name = name
	}
	c.loadState()
	if err := c.files(); err != nil {
		return Report{}, fmt.Errorf("check buffer %s: %w", dir, err)
	}
	for i := range c.lanes {
		c.lane(uint8(i))
	}
	return c.report, nil
}

type checker struct {
	dir    string
	verify func([]byte) error
	state  state
	lanes  []checkedLane
	report Report
}

type checkedLane struct {
	name  string
	paths []string // base names in order of sequence
	seqs  []uint64
}

func (c *checker) find(name, format string, args ...any) {
	c.report.Findings = append(c.report.Findings, Finding{name, fmt.Sprintf(format, args...)})
}

func (c *checker) note(name, format string, args ...any) {
	c.report.Notes = append(c.report.Notes, Finding{name, fmt.Sprintf(format, args...)})
}

func (c *checker) loadState() {
	_, data, err := durable.OpenAB(filepath.Join(c.dir, stateName), maxState)
	if err == nil && data != nil {
		c.state, err = parseState(data)
	}
	if err != nil {
		c.state = state{}
		c.find(stateName, "%v", err)
	}
	for _, a := range c.state.acks {
		if int(a.lane) >= len(c.lanes) {
			c.find(stateName, "acknowledgements of lane %d of %d", a.lane, len(c.lanes))
		}
	}
	for _, e := range c.state.losses {
		if int(e.lane) >= len(c.lanes) {
			c.find(stateName, "losses of lane %d of %d", e.lane, len(c.lanes))
		} else if n := e.numbers.size(); e.evicted+e.damaged > n || e.evicted+e.damaged < n && !e.upper {
			c.find(stateName, "lane %s: %d batches are lost, of %d numbers", c.lanes[e.lane].name, e.evicted+e.damaged, n)
		}
	}
	if n := len(c.state.lanes); n != 0 && n != len(c.lanes) {
		c.find(stateName, "counters of %d lanes of %d", n, len(c.lanes))
	}
}

func (c *checker) files() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		size, err := segment.DiskBytes(filepath.Join(c.dir, name))
		if err != nil {
			return err
		}
		c.report.Disk += size
		laneName, seq, ok := parseFileName(name)
		i := slices.IndexFunc(c.lanes, func(l checkedLane) bool { return l.name == laneName })
		switch {
		case strings.HasSuffix(name, segment.DamagedSuffix):
			c.report.Damaged = append(c.report.Damaged, name)
		case strings.HasSuffix(name, segment.TempSuffix):
			c.note(name, "a segment that was being made; it holds nothing")
		case ok && i >= 0:
			// ReadDir sorts, and the hexadecimal sequence has a fixed width.
			c.lanes[i].paths, c.lanes[i].seqs = append(c.lanes[i].paths, name), append(c.lanes[i].seqs, seq)
		case name != formatName && name != lockName && name != reserveName && !strings.HasPrefix(name, stateName+".") && !strings.HasPrefix(name, "."):
			c.find(name, "not a file of the buffer")
		}
	}
	return nil
}

// lane checks the lane's segments and that their counters follow from each other.
func (c *checker) lane(index uint8) {
	cl := c.lanes[index]
	report := LaneReport{Name: cl.name, Segments: len(cl.paths)}
	acks := map[[16]byte]*ranges{}
	for _, a := range c.state.acks {
		if a.lane == index {
			acks[a.epoch] = &ranges{spans: a.spans}
		}
	}
	for _, e := range c.state.losses {
		if e.lane == index {
			report.Evicted, report.Lost = report.Evicted+e.evicted, report.Lost+e.damaged
		}
	}
	var former *summary
	for i, name := range cl.paths {
		s, err := c.segment(name, acks, &report)
		if err != nil {
			c.find(name, "%v", err)
			continue
		}
		if s.header.lane != index || s.header.seq != cl.seqs[i] {
			c.find(name, "it says it is segment %d of lane %d", s.header.seq, s.header.lane)
		}
		c.follows(name, former, s, &report)
		former = &s
	}
	if int(index) < len(c.state.lanes) && former != nil {
		if have := c.state.lanes[index]; have.nextSeq > former.header.seq+1 && have.batches < former.header.batches {
			c.find(stateName, "lane %s: %d batches in all, but segment %d already follows %d", cl.name, have.batches, former.header.seq, former.header.batches)
		}
	}
	c.report.Lanes = append(c.report.Lanes, report)
}

// follows compares a segment's header with the last readable segment before it.
func (c *checker) follows(name string, former *summary, s summary, report *LaneReport) {
	if former == nil {
		return
	}
	f, h := former.header, s.header
	have := f.batches + former.count
	switch {
	case h.seq == f.seq+1 && (h.batches > have+uint64(h.doubt) || h.batches+uint64(h.doubt) < have):
		c.find(name, "it says %d (doubt %d) batches came before it; segment %d ends at %d", h.batches, h.doubt, f.seq, have)
	case h.seq == f.seq+1 && h.doubt == 0 && (h.formerEpoch != f.epoch || former.count > 0 && h.formerNext <= former.last):
		c.find(name, "it names another segment before it than segment %d", f.seq)
	case h.seq > f.seq+1 && h.batches < have:
		c.find(name, "it says %d batches came before it; segment %d alone ends at %d", h.batches, f.seq, have)
	case h.seq > f.seq+1:
		// What is missing was delivered and deleted, or is in a file set aside; only the latter is a loss.
		if c.asideBetween(report.Name, f.seq, h.seq) {
			report.Missing += h.batches - have
			report.MissingDoubt += uint64(h.doubt)
		}
	}
	if h.epoch == f.epoch && former.count > 0 && s.count > 0 && s.first <= former.last {
		c.find(name, "its numbers begin at %d, within segment %d", s.first, f.seq)
	}
}

func (c *checker) asideBetween(lane string, after, before uint64) bool {
	for seq := after + 1; seq < before; seq++ {
		for _, name := range c.report.Damaged {
			if strings.HasPrefix(name, fileName(lane, seq)) {
				return true
			}
		}
	}
	return false
}

// segment checks one file.
func (c *checker) segment(name string, acks map[[16]byte]*ranges, report *LaneReport) (summary, error) {
	path := filepath.Join(c.dir, name)
	info, err := segment.Inspect(path)
	if err != nil {
		return summary{}, err
	}
	if info.Meta < 2 {
		c.note(name, "one meta page does not verify: a commit was torn, or its page was damaged later")
	}
	f, err := segment.Reopen(path)
	if err != nil {
		return summary{}, err
	}
	defer f.Close()
	s, err := scan(f)
	if err != nil {
		return s, err
	}
	body, err := segment.Summary(path)
	switch {
	case errors.Is(err, segment.ErrUnfinished):
		c.note(name, "it has no summary: it was being written, or a crash ended its writer")
	case err != nil:
		return s, err
	default:
		written, err := parseSummary(body)
		if err != nil {
			return s, err
		}
		s.filter = filter(s.filter).into(make(filter, len(written.filter))) // how far it is folded is its writer's choice
		if string(written.encode()) != string(s.encode()) {
			c.find(name, "its summary says %d batches (%d..%d), it holds %d (%d..%d)", written.count, written.first, written.last, s.count, s.first, s.last)
		}
	}
	if s.count > 0 && s.first < s.header.first {
		c.find(name, "its numbers begin at %d, before %d", s.first, s.header.first)
	}
	return s, f.View(func(tx *bbolt.Tx) error { return c.batches(tx, name, s, acks[s.header.epoch], report) })
}

func (c *checker) batches(tx *bbolt.Tx, name string, s summary, acks *ranges, report *LaneReport) error {
	sealings := tx.Bucket([]byte(bucketSealings))
	err := sealings.ForEach(func(k, v []byte) error {
		_, err := parseRecord(k, v)
		return err
	})
	if err != nil {
		return err
	}
	return eachNumber(tx, 0, func(n uint64) error {
		batch, err := readBatch(tx, s.header, n)
		if err == nil && c.verify != nil {
			err = c.verify(batch.Frame)
		}
		if err != nil {
			c.find(name, "batch %d: %v", n, err)
			return nil
		}
		if sealings.Get(batch.Sealing[:]) == nil {
			c.find(name, "batch %d: its sealing record %x is not in the file", n, batch.Sealing)
		}
		eachSeen(tx.Bucket([]byte(bucketBatches)).Bucket(numberKey(n)).Get([]byte(keySeen)), func(m Seen) {
			if m.Mask == 0 || bits.Len8(m.Mask) > len(c.lanes) {
				c.find(name, "batch %d: a message with lane mask %#x", n, m.Mask)
			}
			if !filter(s.filter).may(&m.Digest) {
				c.find(name, "batch %d: a message is not in the filter", n)
			}
		})
		report.Batches++
		report.Bytes += uint64(len(batch.Frame))
		if acks.has(n) {
			report.Acked++
		}
		if _, held := c.state.parked[batch.ID]; held {
			report.Parked++
		}
		return nil
	})
}
