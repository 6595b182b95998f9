package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wardlink/audit"
	"wardlink/internal/durable"
)

// File is a finished file of the journal.
type File struct {
	Name        string
	First, Last uint64 // sequence numbers of its entries
	Bytes       uint64 // of heads and blobs
	Closed      time.Time
}

// maxAhead is how far the clock may be before a file's time without that the time is taken for one of a clock that was far ahead.
const maxAhead = 48 * time.Hour

// Expired are the files, oldest first, that every consumer has passed and whose retention is over at now. The newest is never among
// them: it carries the sequence on. Nothing is deleted here; whether now can be believed is the caller's to know.
func (j *Journal) Expired(now time.Time) []File {
	j.mu.Lock()
	defer j.mu.Unlock()
	files := make([]File, len(j.segs))
	for i, s := range j.segs {
		files[i] = s.describe()
	}
	return Due(files, j.passed(), now, j.c.Retention)
}

// Due are those of a journal's files, oldest first, that Expired gives: passed by all consumers, retention over, not the newest. One that is
// being written has no time at which it was finished.
//
// A file is as old as the latest time by which it or one before it was finished: a file that was written while the clock stood at 1970
// is not fifty years old. One from a time ahead of now is as old as the next that is not.
func Due(files []File, passed uint64, now time.Time, retention time.Duration) []File {
	var latest time.Time
	for i, f := range files {
		if i == len(files)-1 || f.Closed.IsZero() || passed < f.Last {
			return files[:i]
		}
		closed := f.Closed
		for n := i + 1; closed.After(now.Add(maxAhead)) && n < len(files) && !files[n].Closed.IsZero(); n++ {
			closed = files[n].Closed
		}
		if closed.After(latest) {
			latest = closed
		}
		if now.Sub(latest) < retention {
			return files[:i]
		}
	}
	return nil
}

func (s *seg) describe() File {
	f := File{Name: filepath.Base(s.path), First: s.header.first, Last: s.last, Bytes: s.bytes}
	if !s.writing && s.closed != 0 {
		f.Closed = time.Unix(s.closed, 0)
	}
	return f
}

// Disposed is the event that is journaled before a file goes.
func (f File) Disposed(cutoff, now time.Time) audit.Event {
	return audit.Event{
		Type: audit.RecordsDisposed, Time: now.UnixMilli(), Actor: audit.Actor{ID: "server"}, Target: "journal", Outcome: audit.Success, Reason: "retention", Count: 1,
		Detail: map[string]string{
			"class": "journal", "file": f.Name, "first_entry": fmt.Sprint(f.First), "last_entry": fmt.Sprint(f.Last), "bytes": fmt.Sprint(f.Bytes),
			"last": f.Closed.UTC().Format(time.RFC3339), "cutoff": cutoff.UTC().Format(time.RFC3339),
		},
	}
}

// Oldest is the sequence number before which the journal has nothing, and when the file that begins with it was finished: now, when it
// is being written.
func (j *Journal) Oldest() (seq uint64, closed time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segs) == 0 {
		return j.committed + 1, j.c.Now()
	}
	if s := j.segs[0]; s.closed != 0 && !s.writing {
		return s.header.first, time.Unix(s.closed, 0)
	}
	return j.segs[0].header.first, j.c.Now()
}

// Dispose deletes a file that Expired gave, with its event. It refuses any that is not the oldest or not passed by all consumers.
//
// Crash argument: the event is durable before the file goes, and the cursors that allow it are. A server that dies between the two has
// the event and the file; the file is disposed of again, with an event again. There is no deletion without an event.
func (j *Journal) Dispose(ctx context.Context, f File, cutoff time.Time) error {
	if err := j.disposable(f); err != nil {
		return err
	}
	if err := AppendEvent(ctx, j, f.Disposed(cutoff, j.c.Now())); err != nil {
		return err
	}
	j.reading.Lock()
	defer j.reading.Unlock()
	if err := j.disposable(f); err != nil {
		return err
	}
	j.mu.Lock()
	s := j.segs[0]
	j.segs = j.segs[1:]
	j.mu.Unlock()
	j.shut(s)
	if len(s.bad) > 0 {
		j.setAside(s.path, s.bad[0])
		return nil
	}
	err := os.Remove(s.path)
	if err == nil {
		err = durable.SyncDir(j.c.Dir)
	}
	if err != nil {
		return fmt.Errorf("journal file %s, whose time is over, could not be deleted: %w; the next start finds it again", s.path, err)
	}
	return nil
}

func (j *Journal) disposable(f File) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segs) < 2 || j.segs[0].header.first != f.First || j.segs[0].writing || j.passed() < j.segs[0].last {
		return errors.New("journal: " + f.Name + " is not a file that can be disposed of")
	}
	return nil
}
