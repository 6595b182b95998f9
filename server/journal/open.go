package journal

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
	"wardlink/server/journal/group"
)

// Open opens the journal that Create made. Files of former runs are only read from now on; writing begins in a new one. Damaged
// files are set aside, which is no error but is logged and in Stats. Damaged cursors are an error: without them a consumer would
// begin anew, and what that means only an operator can say.
func Open(c Config) (*Journal, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := readFormat(c.Dir); err != nil {
		return nil, err
	}
	held, err := lock(c.Dir, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	j := &Journal{c: c, lock: held, queue: group.NewQueue[Entry](queueBytes, ErrClosed)}
	err = j.loadCursors()
	if err == nil {
		err = j.loadFiles()
	}
	if err == nil {
		err = j.beginStart()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", c.Dir, err), held.Close())
	}
	j.mark = group.NewMark(j.committed)
	notes := make(chan group.Group[Entry], 4)
	j.workers.Add(2)
	go j.run(notes)
	go j.notify(notes)
	return j, nil
}

func (j *Journal) loadCursors() error {
	path := filepath.Join(j.c.Dir, cursorName)
	ab, data, err := durable.OpenAB(path, maxCursors)
	if errors.Is(err, durable.ErrNewer) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%w; restore %s.a and %s.b from a backup, or delete both to let every consumer begin anew", err, path, path)
	}
	j.state = ab
	j.cursors.seqs = map[string]uint64{}
	if data == nil {
		return nil
	}
	if j.cursors, err = parseCursors(data); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// beginStart picks this run's start second for event ids and makes it durable before any id is given out.
func (j *Journal) beginStart() error {
	j.start = max(uint32(j.c.Now().Unix()), j.cursors.start+1)
	for _, s := range j.segs {
		j.start = max(j.start, s.header.start+1) // the cursors may have been lost or put back
	}
	j.cursors.start = j.start
	return j.state.Store(j.cursors.encode(j.names()))
}

// names are all consumers whose cursors are kept, those of this run first; a name that this run does not use is not forgotten.
func (j *Journal) names() []string {
	names := slices.Clone(j.c.Consumers)
	var others []string
	for name := range j.cursors.seqs {
		if !slices.Contains(names, name) {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	return append(names, others[:min(len(others), 16)]...)
}

func (j *Journal) loadFiles() error {
	entries, err := os.ReadDir(j.c.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(j.c.Dir, e.Name())
		if strings.HasSuffix(e.Name(), segment.TempSuffix) {
			// It never became a segment, so nothing in it was ever durable.
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		if strings.HasSuffix(e.Name(), segment.DamagedSuffix) {
			j.damaged = append(j.damaged, path)
			continue
		}
		first, ok := parseFileName(e.Name())
		if !ok {
			continue
		}
		s := &seg{path: path}
		err := j.loadSeg(s, first)
		for try := 1; try < openTries && refusedByDisk(err); try++ {
			time.Sleep(openPause)
			s = &seg{path: path}
			err = j.loadSeg(s, first)
		}
		if err != nil {
			if transient(err) || errors.Is(err, errUnflushed) || errors.Is(err, durable.ErrNewer) || refusedByDisk(err) && !errors.Is(err, syscall.EIO) {
				return fmt.Errorf("%s: %w", path, err)
			}
			j.setAside(path, err)
			continue
		}
		j.segs = append(j.segs, s)
	}
	slices.SortFunc(j.segs, func(x, y *seg) int { return cmp.Compare(x.header.first, y.header.first) })
	j.committed = j.lastUsed()
	return nil
}

// A start asks a disk that does not answer this often, with this much time between. What it cannot read then (EIO) is set aside, as in a running
// journal; what it reads and cannot flush is whole, and stops the start, as does whatever else the kernel says, such as that it has no lock for it.
const (
	openTries = 3
	openPause = time.Second
)

// errUnflushed: entries that were acknowledged can be read and not be made durable. Set aside they would be lost to the log and the records,
// and given out they could be lost to the journal.
var errUnflushed = errors.New("the journal's newest file is whole, but the disk does not flush it; mend the disk, or free space on it, and start again")

// refusedByDisk: what the kernel says of a disk says nothing of the file's content.
func refusedByDisk(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && errno != syscall.ENOENT && errno != syscall.EISDIR && errno != syscall.EINVAL && !transient(err)
}

// lastUsed is the greatest sequence number that may have been used: of the newest file; past all cursors, or a consumer would never
// see what comes next; and past what a newer file may have held that was set aside, which leaves a hole.
func (j *Journal) lastUsed() uint64 {
	last, newest := uint64(0), uint64(0)
	for _, seq := range j.cursors.seqs {
		last = max(last, seq)
	}
	if n := len(j.segs); n > 0 {
		newest = j.segs[n-1].header.first
		last = max(last, j.segs[n-1].last)
	}
	for _, path := range j.damaged {
		name := filepath.Base(path)
		if first, ok := parseFileName(name[:min(len(name), len(fileName(0)))]); ok && first > newest {
			last = max(last, first+uint64(j.c.SegmentSize)/entryHead)
		}
	}
	return last
}

// loadSeg learns what a file holds: from its summary, or, when its writer did not finish it, from the file, which is then finished.
func (j *Journal) loadSeg(s *seg, first uint64) error {
	body, err := segment.Summary(s.path)
	switch {
	case err == nil:
		if s.summary, err = parseSummary(body); err != nil {
			return err
		}
	case errors.Is(err, segment.ErrUnfinished):
		if err := j.recover(s); err != nil {
			return err
		}
	default:
		return err
	}
	if s.header.first != first {
		return fmt.Errorf("%w: it says its first entry is %d", segment.ErrDamaged, s.header.first)
	}
	return nil
}

// recover reads an unfinished file and finishes it. It hardens the file before it reads: what the page cache shows and the disk may not
// hold must not be given to the log and the records, which would then know more than the journal after a power cut.
func (j *Journal) recover(s *seg) error {
	if err := segment.Harden(s.path); refusedByDisk(err) {
		return fmt.Errorf("%w: %w", errUnflushed, err)
	} else if err != nil {
		return err
	}
	info, err := segment.Inspect(s.path)
	if err != nil {
		return err
	}
	if info.Meta < 2 {
		j.c.Log.Warn("the last commit of a journal file is torn; it was not acknowledged unless the disk damaged it later", "path", s.path)
	}
	f, err := segment.Reopen(s.path)
	if err != nil {
		return err
	}
	s.summary, s.bad, err = scan(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	for _, bad := range s.bad {
		j.c.Log.Error("a commit of the journal does not verify and is passed over; its file will be kept", "path", s.path, "error", bad)
	}
	s.checked, s.closed = true, j.c.Now().Unix()
	if err := segment.Finish(s.path, s.summary.encode()); err != nil {
		j.c.Log.Warn("a segment's summary could not be written; the next start reads the whole file", "path", s.path, "error", err)
	}
	return nil
}

// Cursor is what the consumer has passed: the sequence number of the last entry it is done with, 0 for none.
func (j *Journal) Cursor(consumer string) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.cursors.seqs[consumer]
}

// Resume is Cursor for the consumer itself, which begins behind it.
func (j *Journal) Resume(consumer string) (uint64, error) { return j.Cursor(consumer), nil }

// SetCursor stores durably that the consumer is done with all entries up to seq. It never goes back, and not past what is committed.
func (j *Journal) SetCursor(consumer string, seq uint64) error {
	j.storing.Lock()
	defer j.storing.Unlock()
	j.mu.Lock()
	former := j.cursors.seqs[consumer]
	switch {
	case j.closed:
		j.mu.Unlock()
		return fmt.Errorf("set cursor: %w", ErrClosed)
	case !slices.Contains(j.c.Consumers, consumer):
		j.mu.Unlock()
		return fmt.Errorf("set cursor: %q is not a consumer of the journal; expected one of %q", consumer, j.c.Consumers)
	case seq > j.committed || seq < former:
		committed := j.committed
		j.mu.Unlock()
		return fmt.Errorf("set cursor of %s to %d: it is at %d and the journal at %d", consumer, seq, former, committed)
	case seq == former:
		j.mu.Unlock()
		return nil
	}
	next := cursors{start: j.cursors.start, seqs: map[string]uint64{}}
	for name, v := range j.cursors.seqs {
		next.seqs[name] = v
	}
	next.seqs[consumer] = seq
	body := next.encode(j.names())
	j.mu.Unlock()
	if err := j.state.Store(body); err != nil {
		return fmt.Errorf("set cursor of %s: %w", consumer, err)
	}
	j.mu.Lock()
	j.cursors.seqs[consumer] = seq
	j.mu.Unlock()
	j.cool()
	return nil
}

// cool lets the kernel have the memory of finished files that every consumer has passed: who reads them again, after a restore, can wait for the
// disk, while the database's pages, which a hospital searches, would go for what nobody reads. Pages that come back at once are also the
// cheapest to write the next file with. Under storing.
func (j *Journal) cool() {
	j.mu.Lock()
	passed := j.passed()
	var done []*seg
	for _, s := range j.segs {
		if !s.cold && !s.writing && s.last <= passed {
			done = append(done, s)
		}
	}
	j.mu.Unlock()
	for _, s := range done {
		j.reading.Lock()
		j.shut(s) // what is mapped stays
		segment.Cool(s.path)
		j.reading.Unlock()
		s.cold = true
	}
}

// Close commits what was submitted, runs its callbacks, and lets go of the directory.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.mu.Unlock()
	j.queue.Close()
	j.mark.Close(ErrClosed)
	j.workers.Wait()
	j.finish()
	j.reading.Lock()
	defer j.reading.Unlock()
	if j.handle != nil {
		j.shut(j.handle)
	}
	return j.lock.Close()
}
