package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

// Finding is something wrong with a file.
type Finding struct {
	Path    string // base name
	Problem string
}

// Report is what Check found.
type Report struct {
	Segments    int
	First, Last uint64 // sequence numbers of the entries here; Last < First when there are none
	Entries     uint64
	Bytes       uint64 // of heads and blobs
	Disk        int64  // bytes that all files occupy
	Cursors     map[string]uint64
	Damaged     []string  // base names of files that were set aside earlier
	Findings    []Finding // what breaks an invariant of FORMAT.md
	Notes       []Finding // what a crash or a failed commit explains
}

// OK is true when nothing was found and nothing was set aside.
func (r Report) OK() bool { return len(r.Findings) == 0 && len(r.Damaged) == 0 }

// Find notes what breaks an invariant.
func (r *Report) Find(name, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{name, fmt.Sprintf(format, args...)})
}

func (r *Report) note(name, format string, args ...any) {
	r.Notes = append(r.Notes, Finding{name, fmt.Sprintf(format, args...)})
}

// Check reads everything in a journal's directory and compares it with FORMAT.md. It writes nothing, and refuses with ErrLocked
// while the journal is open. The error says that the check could not be made; what it found wrong is in the Report.
func Check(dir string) (Report, error) {
	r := Report{First: 1}
	if err := readFormat(dir); err != nil {
		return r, err
	}
	held, err := lock(dir, syscall.LOCK_SH)
	if err != nil {
		return r, err
	}
	defer held.Close()
	_, data, err := durable.OpenAB(filepath.Join(dir, cursorName), maxCursors)
	if err == nil && data != nil {
		var c cursors
		if c, err = parseCursors(data); err == nil {
			r.Cursors = c.seqs
		}
	}
	if err != nil {
		r.Find(cursorName, "%v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return r, fmt.Errorf("check journal: %w", err)
	}
	var all []checked // in order: names sort by first sequence number
	for _, e := range entries {
		name := e.Name()
		size, err := segment.DiskBytes(filepath.Join(dir, name))
		if err != nil {
			return r, fmt.Errorf("check journal: %w", err)
		}
		r.Disk += size
		first, ok := parseFileName(name)
		switch {
		case strings.HasSuffix(name, segment.DamagedSuffix):
			r.Damaged = append(r.Damaged, name)
		case strings.HasSuffix(name, voidSuffix):
			r.note(name, "its first commit failed: nothing in it was acknowledged, and its numbers were given out again")
		case strings.HasSuffix(name, segment.TempSuffix):
			r.note(name, "a segment that was being made; it holds nothing")
		case ok:
			if s, err := r.segment(dir, name, first); err != nil {
				r.Find(name, "%v", err)
			} else {
				all = append(all, checked{name, s})
			}
		case name != formatName && name != lockName && !strings.HasPrefix(name, cursorName+".") && !strings.HasPrefix(name, "."):
			r.Find(name, "not a file of the journal")
		}
	}
	r.sequence(all)
	return r, nil
}

type checked struct {
	name string
	summary
}

// segment checks one file.
func (r *Report) segment(dir, name string, first uint64) (summary, error) {
	path := filepath.Join(dir, name)
	info, err := segment.Inspect(path)
	if err != nil {
		return summary{}, err
	}
	if info.Meta < 2 {
		r.note(name, "one meta page does not verify: a commit was torn, or its page was damaged later")
	}
	f, err := segment.Reopen(path)
	if err != nil {
		return summary{}, err
	}
	defer f.Close()
	s, bad, err := scan(f)
	if err != nil {
		return s, err
	}
	for _, b := range bad {
		r.Find(name, "%v", b)
	}
	if s.header.first != first {
		r.Find(name, "it says its first entry is %d", s.header.first)
	}
	body, err := segment.Summary(path)
	switch {
	case errors.Is(err, segment.ErrUnfinished):
		r.note(name, "it has no summary: it was being written, or a crash ended its writer")
		return s, nil
	case err != nil:
		return s, err
	}
	written, err := parseSummary(body)
	if err != nil {
		return s, err
	}
	switch {
	case written.header != s.header || written.last > s.last:
		r.Find(name, "its summary says %d to %d, it holds %d to %d", written.header.first, written.last, s.header.first, s.last)
	case written.last < s.last:
		r.note(name, "entries %d to %d are from a commit that failed and do not count", written.last+1, s.last)
		s.last = written.last
	case written.bytes != s.bytes && len(bad) == 0:
		r.Find(name, "its summary says %d bytes, it holds %d", written.bytes, s.bytes)
	}
	return s, nil
}

// sequence checks that the segments follow each other without a hole that no file set aside explains.
func (r *Report) sequence(all []checked) {
	r.Segments = len(all)
	for i, s := range all {
		r.Bytes += s.bytes
		if i == 0 {
			r.First, r.Last = s.header.first, s.last
			r.Entries = s.last + 1 - s.header.first
			continue
		}
		former := all[i-1]
		switch {
		case s.header.first <= former.last:
			r.note(former.name, "entries from %d on are from a commit that failed and do not count", s.header.first)
			r.Entries -= former.last + 1 - s.header.first
		case s.header.first > former.last+1 && len(r.Damaged) == 0 && len(r.Findings) == 0:
			r.Find(s.name, "entries %d to %d are missing before it", former.last+1, s.header.first-1)
		}
		r.Entries += s.last + 1 - s.header.first
		r.Last = s.last
	}
	for name, seq := range r.Cursors {
		if len(all) > 0 && seq > r.Last && len(r.Damaged) == 0 && len(r.Findings) == 0 {
			r.Find(cursorName, "%s has passed entry %d, the last is %d", name, seq, r.Last)
		}
	}
}
