package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

// SalvageConfig says what Salvage reads.
type SalvageConfig struct {
	Dir string // a buffer's directory; nothing in it is written, so that it may lie on a read-only mount
	// Recognise reads the frame that data begins with: its batch, whose Frame is a prefix of data, or false when data begins with none
	// that is whole. Required. It is all that a salvage knows of frames: what it does not recognise is not given out.
	Recognise func(data []byte) (Batch, bool)
	// Mark is how every frame begins, 4 bytes or more. Where a file's structure is damaged, frames are looked for by it.
	Mark []byte
	// MaxFrame is the most bytes a frame can have.
	MaxFrame int
	// All gives out delivered batches that are still there, too.
	All bool
	// Stop is asked all along; its error ends the walk, and is given back. nil: never. What looks like the beginning of a frame has to be hashed,
	// and whoever fills a file with such beginnings has that take minutes for each megabyte.
	Stop func() error
}

// Salvaged is what was found in one lane, in batches.
type Salvaged struct {
	Lane      string `json:"lane"`
	Found     uint64 `json:"found"`     // whole batches
	Delivered uint64 `json:"delivered"` // of Found: acknowledged by the receiver, as far as the directory says
	Parked    uint64 `json:"parked"`    // of Found: refused by the receiver earlier
	Damaged   uint64 `json:"damaged"`   // known to have been there and not found whole
	Evicted   uint64 `json:"evicted"`   // deleted for the room of others while the agent ran, as far as the receiver had not heard of it
	// Unknown is how many more may have been in files whose count of batches cannot be read.
	Unknown uint64 `json:"unknown,omitempty"`
}

// Salvage walks over a buffer whose agent will not run again and gives each whole batch that was not delivered to each, once, lane by
// lane, in a lane by segment. Parked batches are among them. It reads files set aside and files that are damaged, too, and looks for
// frames in what is left of those; it holds one file's worth of numbers and a few frames in memory. It refuses with ErrLocked while an
// agent runs on the directory, and with durable.ErrNewer for a later format. problems are for people: what is damaged, by base name.
// An error of each ends the walk and is given back as it is.
func Salvage(c SalvageConfig, each func(Batch) error) (lanes []Salvaged, problems []Finding, err error) {
	for name, most := range map[string]int64{formatName: maxFormat, lockName: math.MaxInt64} {
		if err := durable.Regular(filepath.Join(c.Dir, name), most); err != nil {
			return nil, nil, fmt.Errorf("salvage buffer: %w", err)
		}
	}
	names, err := readFormat(c.Dir)
	if err != nil {
		return nil, nil, err
	}
	held, err := lookLock(c.Dir)
	if err != nil {
		return nil, nil, err
	}
	if held != nil {
		defer held.Close()
	}
	s := &salvager{c: c, each: each}
	if err := s.loadState(len(names)); err != nil {
		return nil, nil, fmt.Errorf("salvage buffer %s: %w", c.Dir, err)
	}
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return nil, nil, fmt.Errorf("salvage buffer: %w", err)
	}
	for i, name := range names {
		s.lane, s.report = uint8(i), Salvaged{Lane: name, Evicted: s.evicted[uint8(i)]}
		for _, e := range entries { // ReadDir sorts, and the hexadecimal sequence has a fixed width
			if base, ok := salvageable(e.Name()); ok && base == name {
				if err := s.file(e.Name()); err != nil {
					return nil, s.problems, err
				}
			}
		}
		lanes = append(lanes, s.report)
	}
	return lanes, s.problems, nil
}

// salvageable gives the lane of a segment's file, also of one that was set aside.
func salvageable(name string) (lane string, ok bool) {
	i := strings.Index(name, ".seg")
	if i < 0 || name[i+4:] != "" && !strings.HasSuffix(name, segment.DamagedSuffix) {
		return "", false // a segment that was being made holds nothing
	}
	lane, _, ok = parseFileName(name[:i+4])
	return lane, ok
}

// lookLock takes the shared lock without making its file: nil on a copy that has none.
func lookLock(dir string) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("buffer: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("buffer %s: %w", dir, ErrLocked)
		}
		return nil, fmt.Errorf("buffer %s: lock: %w", dir, err)
	}
	return f, nil
}

type salvager struct {
	c        SalvageConfig
	each     func(Batch) error
	acks     map[stream]*ranges
	parked   map[ID]parked
	evicted  map[uint8]uint64
	lane     uint8
	report   Salvaged
	problems []Finding

	seen map[ID]bool // of the present file
}

// Whoever had the directory can have put anything into it, and root may be who reads it: nothing is opened that is no regular file, or longer
// than any file of a buffer. A segment has 4 MB; that many times sixteen leaves room for any that was ever configured.
const (
	maxFormat   = 4 << 10
	maxSalvaged = 64 << 20
)

// stopped marks an error of each, which is the caller's and no damage.
type stopped struct{ error }

func (s stopped) Unwrap() error { return s.error }

func (s *salvager) stop() error {
	if s.c.Stop == nil {
		return nil
	}
	if err := s.c.Stop(); err != nil {
		return stopped{err}
	}
	return nil
}

func (s *salvager) find(name, format string, args ...any) {
	s.problems = append(s.problems, Finding{name, fmt.Sprintf(format, args...)})
}

// loadState reads what was acknowledged. Without it everything counts as not delivered: the receiver knows batches by their numbers.
func (s *salvager) loadState(lanes int) error {
	s.acks, s.parked, s.evicted = map[stream]*ranges{}, map[ID]parked{}, map[uint8]uint64{}
	path := filepath.Join(s.c.Dir, stateName)
	err := errors.Join(durable.Regular(path+".a", math.MaxInt64), durable.Regular(path+".b", math.MaxInt64)) // OpenAB bounds what it reads
	var data []byte
	if err == nil {
		_, data, err = durable.OpenAB(path, maxState)
	}
	var st state
	if err == nil && data != nil {
		st, err = parseState(data)
	}
	if errors.Is(err, durable.ErrNewer) {
		return err
	}
	if err != nil {
		s.find(stateName, "what was delivered cannot be read, so that all is given out: %v", err)
		return nil
	}
	for _, a := range st.acks {
		if int(a.lane) < lanes {
			s.acks[stream{a.epoch, a.lane}] = &ranges{spans: a.spans}
		}
	}
	for _, l := range st.losses {
		s.evicted[l.lane] += l.evicted
	}
	if st.parked != nil {
		s.parked = st.parked
	}
	return nil
}

// file gives out one file's batches: as the format has them, and where that does not hold, frame by frame.
func (s *salvager) file(name string) error {
	path := filepath.Join(s.c.Dir, name)
	if err := durable.Regular(path, maxSalvaged); err != nil {
		s.find(name, "%v", err)
		return nil
	}
	if err := s.stop(); err != nil {
		return errors.Unwrap(err)
	}
	s.seen = map[ID]bool{}
	count, known := s.counted(path)
	before := s.report.Found
	torn, err := s.ordered(path)
	var stop stopped
	switch {
	case errors.As(err, &stop):
		return stop.error
	case errors.Is(err, durable.ErrNewer):
		return fmt.Errorf("salvage %s: %w", path, err)
	case err != nil:
		s.find(name, "%v; what is whole in it was looked for frame by frame", err)
	case torn:
		s.find(name, "one meta page does not verify: a commit was torn, or its page was damaged later; its frames were looked for")
	}
	if err != nil || torn {
		if err := s.carve(path); err != nil {
			if errors.As(err, &stop) {
				return stop.error
			}
			s.find(name, "%v", err)
		}
	}
	found := s.report.Found - before
	switch {
	case known && count > found:
		s.report.Damaged += count - found
		s.find(name, "%d of its %d batches are not whole", count-found, count)
	case !known && err != nil:
		// How many were there its successor's header would say, give or take; the room they had is a bound that always holds.
		if size, serr := os.Stat(path); serr == nil {
			s.report.Unknown += max(0, uint64(size.Size())/minBatch-found)
		}
	}
	return nil
}

// counted is how many batches a finished file says it holds.
func (s *salvager) counted(path string) (n uint64, known bool) {
	body, err := segment.Summary(path)
	if err != nil {
		return 0, false
	}
	sum, err := parseSummary(body)
	return sum.count, err == nil && sum.header.lane == s.lane
}

// ordered reads a file whose structure holds. An error says that not all of it does; what was given out by then stands. torn says that
// the last commit may not be where the structure leads.
func (s *salvager) ordered(path string) (torn bool, err error) {
	if body, err := segment.Summary(path); err == nil && len(body) > 0 && body[0] > formatVersion {
		return false, fmt.Errorf("format version %d: %w", body[0], durable.ErrNewer)
	}
	info, err := segment.Inspect(path)
	if err != nil {
		return false, err
	}
	torn = info.Meta < 2
	f, err := segment.Reopen(path)
	if err != nil {
		return torn, judge(path, err)
	}
	defer f.Close()
	var bad error
	err = f.View(func(tx *bbolt.Tx) error {
		h, err := readHeader(tx)
		if err != nil {
			return err
		}
		if h.lane != s.lane {
			return fmt.Errorf("%w: it says it is of lane %d", segment.ErrDamaged, h.lane)
		}
		return eachNumber(tx, 0, func(n uint64) error {
			batch, err := readBatch(tx, h, n)
			if err == nil {
				again, ok := s.c.Recognise(batch.Frame)
				if !ok || len(again.Frame) != len(batch.Frame) || again.ID != batch.ID {
					err = errors.New("its frame is not whole")
				}
			}
			if err != nil {
				bad = errors.Join(bad, fmt.Errorf("batch %d: %w", n, err))
				return nil
			}
			return s.give(batch)
		})
	})
	if err != nil {
		return torn, judge(path, err)
	}
	return torn, bad
}

// give hands out a whole batch unless it was given out or delivered.
func (s *salvager) give(b Batch) error {
	if s.seen[b.ID] {
		return nil
	}
	s.seen[b.ID] = true
	s.report.Found++
	if _, parked := s.parked[b.ID]; parked {
		s.report.Parked++
	}
	if s.acks[stream{b.ID.Epoch, b.ID.Lane}].has(b.ID.Number) {
		s.report.Delivered++
		if !s.c.All {
			return nil
		}
	}
	if err := s.each(b); err != nil {
		return stopped{err}
	}
	return nil
}

// carvePiece is how much of a damaged file is read at a time.
const carvePiece = 1 << 20

// carve looks for frames wherever they lie. bbolt keeps a value's bytes together, so that a frame is whole where its own pages are,
// whatever became of those that lead to it. A frame of a commit that failed may be among them: it is what its gateway sealed, under a
// number that it gave to nothing else.
func (s *salvager) carve(path string) error {
	if len(s.c.Mark) < 4 || s.c.MaxFrame < len(s.c.Mark) {
		return errors.New("frames cannot be looked for: no mark is known")
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	unread := 0
	buf := make([]byte, carvePiece+s.c.MaxFrame)
	for at := int64(0); at < stat.Size(); at += carvePiece {
		n := min(int64(len(buf)), stat.Size()-at)
		if err := s.stop(); err != nil {
			return err
		}
		unread += readPages(f, buf[:n], at)
		if err := s.carveIn(buf[:n]); err != nil {
			return err
		}
	}
	if unread > 0 {
		return fmt.Errorf("the disk cannot read %d pages of it", unread)
	}
	return nil
}

// carveIn takes the frames that begin in data's first piece.
func (s *salvager) carveIn(data []byte) error {
	for i := 0; i < min(len(data), carvePiece); i++ {
		next := bytes.Index(data[i:], s.c.Mark)
		if next < 0 || i+next >= carvePiece {
			return nil
		}
		i += next
		if err := s.stop(); err != nil {
			return err
		}
		batch, ok := s.c.Recognise(data[i:min(len(data), i+s.c.MaxFrame)])
		if !ok || batch.ID.Lane != s.lane {
			continue
		}
		batch.Frame = slices.Clone(batch.Frame)
		if err := s.give(batch); err != nil {
			return err
		}
	}
	return nil
}

// readPages fills data from the file, with zeros where the disk cannot read, and says how many pages those are.
func readPages(f io.ReaderAt, data []byte, at int64) (unread int) {
	if _, err := f.ReadAt(data, at); err == nil {
		return 0
	}
	for off := 0; off < len(data); off += segment.PageSize {
		page := data[off:min(len(data), off+segment.PageSize)]
		if _, err := f.ReadAt(page, at+int64(off)); err != nil {
			clear(page)
			unread++
		}
	}
	return unread
}
