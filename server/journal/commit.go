package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
	"wardlink/server/journal/group"
)

// run commits what is queued until Close, everything that gathered during one flush in the next. notes carries finished groups to
// the goroutine that calls done, so that acknowledging one group overlaps with flushing the next.
func (j *Journal) run(notes chan<- group.Group[Entry]) {
	defer j.workers.Done()
	defer close(notes)
	limit := int(min(commitBytes, j.c.SegmentSize/2))
	for {
		g, last := j.queue.Take(limit, commitEntries)
		if !g.Empty() {
			if len(g.Entries) > 0 {
				g.Err = j.commit(g.Entries)
			}
			notes <- g
			continue
		}
		if last {
			return
		}
		j.idle()
	}
}

// probeInterval is how often a journal that cannot be written is tried while nobody submits anything.
const probeInterval = 2 * time.Second

// idle waits for something to commit. After a failed commit it also tries, now and then, whether a segment can be begun again: whoever
// asks for Health sends no traffic to a node that is ill, and the disk's recovery must not wait for traffic.
func (j *Journal) idle() {
	if j.Health() == nil || j.current != nil {
		<-j.queue.More()
		return
	}
	t := time.NewTimer(probeInterval)
	defer t.Stop()
	select {
	case <-j.queue.More():
		return
	case <-t.C:
	}
	// A segment that was begun is a commit that was flushed; it stays and takes what comes next.
	if err := j.begin(j.committed + 1); err != nil {
		_ = j.failed(err) // told there
		return
	}
	j.mended()
}

func (j *Journal) notify(notes <-chan group.Group[Entry]) {
	defer j.workers.Done()
	for g := range notes {
		g.Tell()
	}
}

// commit makes a group durable, in a new segment when the current one has no room or is given up.
func (j *Journal) commit(batch []group.Pending[Entry]) error {
	first := j.committed + 1 // only this goroutine writes it
	entries := j.entries[:0]
	size := uint64(0)
	for _, p := range batch {
		entries = append(entries, p.Entry)
		size += uint64(p.Entry.Size())
	}
	value := pack(j.value[:0], first, entries)
	clear(entries) // frames are their sessions' again once they are durable
	j.entries, j.value = entries, value
	bound := int64(len(value)+2*segment.PageSize) + commitPages*segment.PageSize
	if j.current == nil || j.current.file.Room() < bound {
		if err := j.begin(first); err != nil {
			return j.failed(err)
		}
	}
	s := j.current
	err := s.file.Commit(bound, func(tx *bbolt.Tx) error {
		commits := tx.Bucket([]byte(bucketCommits))
		commits.FillPercent = 1 // sequence numbers ascend: pages are filled once and left alone
		commit, err := commits.CreateBucket(seqKey(first))
		if err != nil {
			return err
		}
		return commit.Put([]byte(keyEntries), value)
	})
	if err != nil {
		// Whether the group is on disk is unknown. The next segment begins with the same sequence number, and that voids it: entries
		// from a successor's first on do not count, here and after any crash. Until there is a successor, a restart may find the
		// group and keep it: nobody has seen those numbers used for anything else.
		j.finish()
		return j.failed(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range batch {
		batch[i].Seq = first + uint64(i)
	}
	j.committed = first + uint64(len(batch)) - 1
	j.mended()
	s.last = j.committed
	s.bytes += size
	j.mark.Reach(j.committed)
	return nil
}

func (j *Journal) failed(err error) error {
	if tell, failures := j.fault.Failed(err); tell {
		j.c.Log.Error("the journal cannot be written; nothing is acknowledged", "dir", j.c.Dir, "error", err, "failures", failures)
	}
	return fmt.Errorf("journal: %w", err)
}

// mended ends a fault.
func (j *Journal) mended() {
	if was, failures := j.fault.Mended(); was {
		j.c.Log.Info("the journal can be written again", "dir", j.c.Dir, "failures", failures)
	}
}

// begin finishes the current segment and creates the next.
func (j *Journal) begin(first uint64) error {
	j.finish()
	s := &seg{summary: summary{header: header{node: j.c.Node, start: j.start, first: first}, last: first - 1},
		path: filepath.Join(j.c.Dir, fileName(first)), writing: true, checked: true}
	if err := j.clear(first); err != nil {
		return err
	}
	file, err := segment.Create(s.path, j.c.SegmentSize, func(tx *bbolt.Tx) error {
		h, err := tx.CreateBucket([]byte(bucketHeader))
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucket([]byte(bucketCommits)); err != nil {
			return err
		}
		return h.Put([]byte(keyHeader), s.header.encode())
	})
	if err != nil {
		return err
	}
	s.file = file
	j.mu.Lock()
	j.segs = append(j.segs, s)
	j.mu.Unlock()
	j.current = s
	return nil
}

// clear takes away a segment that begins with the same number: nothing in it was ever acknowledged, because its first commit failed.
// It is set aside rather than deleted; it is evidence of a failing disk.
func (j *Journal) clear(first uint64) error {
	j.reading.Lock()
	defer j.reading.Unlock()
	j.mu.Lock()
	n := len(j.segs)
	if n == 0 || j.segs[n-1].header.first != first {
		j.mu.Unlock()
		return nil
	}
	s := j.segs[n-1]
	j.segs = j.segs[:n-1]
	j.mu.Unlock()
	j.shut(s)
	if s.last >= s.header.first {
		return fmt.Errorf("segment %s holds entries that the journal does not count", s.path)
	}
	if s.bytes == 0 && j.unused(s) {
		if err := os.Remove(s.path); err != nil {
			return err
		}
		return durable.SyncDir(j.c.Dir)
	}
	return j.setVoid(s.path)
}

// maxVoid is how many void segments are kept as evidence. A disk that fails every commit is tried again for as long as gateways knock, and
// must not be filled by what that leaves.
const maxVoid = 8

// setVoid sets a segment aside of which nothing counts. Its name differs from that of damaged files, because its numbers were never
// given to anybody: the next segment begins with them, and a start must not pass over them.
func (j *Journal) setVoid(path string) error {
	if void, err := filepath.Glob(filepath.Join(j.c.Dir, "*"+voidSuffix)); err != nil || len(void) >= maxVoid {
		if err := os.Remove(path); err != nil {
			return err
		}
		return durable.SyncDir(j.c.Dir)
	}
	aside := path + voidSuffix
	for i := 1; ; i++ {
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
		aside = fmt.Sprintf("%s.%d%s", path, i, voidSuffix)
	}
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	j.c.Log.Warn("a journal file whose first commit failed was set aside; nothing in it was acknowledged", "path", aside)
	return durable.SyncDir(j.c.Dir)
}

// unused says that a segment holds no commit at all.
func (j *Journal) unused(s *seg) bool {
	f, err := segment.Open(s.path)
	if err != nil {
		return false
	}
	got, _, err := scan(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err == nil && got.last < got.header.first
}

// finish closes the current segment for writing and gives it its summary.
func (j *Journal) finish() {
	s := j.current
	j.current = nil
	if s == nil {
		return
	}
	j.reading.Lock()
	defer j.reading.Unlock()
	if err := s.file.Close(); err != nil {
		j.c.Log.Warn("a segment did not close in order", "path", s.path, "error", err)
	}
	j.mu.Lock()
	s.file, s.writing = nil, false
	s.closed = j.c.Now().Unix()
	body := s.summary.encode()
	j.mu.Unlock()
	if err := segment.Finish(s.path, body); err != nil {
		j.c.Log.Warn("a segment's summary could not be written; the next start reads the whole file", "path", s.path, "error", err)
	}
}

// passed is the sequence number that every consumer has passed. Under mu.
func (j *Journal) passed() uint64 {
	if len(j.c.Consumers) == 0 {
		return j.committed
	}
	least := j.cursors.seqs[j.c.Consumers[0]]
	for _, name := range j.c.Consumers[1:] {
		least = min(least, j.cursors.seqs[name])
	}
	return least
}
