package bedside

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Recording is a decoded record: numerics, waveforms, or both.
type Recording struct {
	Header Header
	tracks []*track
	rows   int
}

// track is one signal through a whole record.
type track struct {
	name     string
	perFrame int
	runs     []run // oldest first
}

// run is what one segment holds of a track. Its samples have no gap among them.
type run struct {
	column  Column
	format  format
	start   int     // the frame of the record at which it begins: the samples of its skew lie before it
	samples []int32 // as recorded; format.min is a missing one
}

// first is the frame of the run's first sample.
func (r run) first() int { return r.start - r.column.Skew }

// folder reads the files of a record: at most limit bytes of the one of that name.
type folder func(name string, limit int64) ([]byte, error)

// OpenRecording reads the record whose header is path (with or without .hea) and all that it names in the folder beside it. Each signal's
// checksum is compared, so that an answer without error is every sample as it was recorded.
func OpenRecording(path string) (*Recording, error) {
	path = strings.TrimSuffix(path, ".hea")
	r, err := open(filepath.Base(path), func(name string, limit int64) ([]byte, error) {
		return readBounded(filepath.Join(filepath.Dir(path), name), limit)
	})
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", path, err)
	}
	return r, nil
}

func open(name string, read folder) (*Recording, error) {
	o := &opening{read: read, recording: &Recording{}}
	h, err := o.header(name)
	if err != nil {
		return nil, err
	}
	o.recording.Header = h
	if h.Segments == nil {
		err = o.segment(h, 0)
	} else {
		err = o.segments()
	}
	if err != nil {
		return nil, err
	}
	r := o.recording
	if len(r.tracks) == 0 {
		return nil, errors.New("it holds no samples")
	}
	if err := r.playable(); err != nil {
		return nil, err
	}
	for range r.Replay(time.UnixMilli(0)) {
		r.rows++
	}
	return r, nil
}

// opening is a record half read.
type opening struct {
	read      folder
	recording *Recording
	layout    []string // keys of tracks, in the order that they shall have; of a fixed layout also no others
	samples   int64    // read so far
}

func (o *opening) header(name string) (Header, error) {
	raw, err := o.read(name+".hea", maxHeader)
	if err != nil {
		return Header{}, err
	}
	return ParseHeader(raw)
}

// segments reads the parts of a multi-segment record one after the other.
func (o *opening) segments() error {
	master := &o.recording.Header
	frame, variable := 0, master.Segments[0].Frames == 0
	for i, s := range master.Segments {
		if s.Name == gap {
			if s.Frames == 0 {
				return errors.New("segment 1 is a gap without samples; expected a layout")
			}
			frame += s.Frames
			continue
		}
		h, err := o.header(s.Name)
		switch {
		case err != nil:
		case h.Segments != nil:
			err = errors.New("it has segments of its own, which the format does not allow")
		case h.Rate.Cmp(master.Rate) != 0:
			err = fmt.Errorf("its rate is %s, the record's %s", h.Rate.FloatString(6), master.Rate.FloatString(6))
		case i == 0 && variable:
			o.layout = keys(h.Columns)
			continue
		case h.Frames != 0 && h.Frames != s.Frames:
			err = fmt.Errorf("its header says %d samples, the record's %d", h.Frames, s.Frames)
		case !variable && o.layout != nil && !slices.Equal(o.layout, keys(h.Columns)):
			err = errors.New("its signals are not those of the segment before, and the record has no layout segment")
		default:
			if !variable {
				o.layout = keys(h.Columns)
			}
			h.Frames = s.Frames
			err = o.segment(h, frame)
		}
		if err != nil {
			return fmt.Errorf("segment %s: %w", s.Name, err)
		}
		if frame += s.Frames; frame > maxFrames {
			return fmt.Errorf("its segments have more than %d samples", maxFrames)
		}
	}
	if master.Frames != 0 && master.Frames != frame {
		return fmt.Errorf("its segments have %d samples, its header says %d", frame, master.Frames)
	}
	o.sort()
	return nil
}

// keys names the signals of a segment so that the same signal has the same key in each: by its name, the second of a name apart.
func keys(columns []Column) []string {
	all := make([]string, len(columns))
	seen := map[string]int{}
	for i, c := range columns {
		seen[c.Name]++
		if all[i] = c.Name; seen[c.Name] > 1 {
			all[i] = fmt.Sprintf("%s#%d", c.Name, seen[c.Name])
		}
	}
	return all
}

// sort brings the tracks into the layout's order; what a segment has beyond its layout follows.
func (o *opening) sort() {
	rest := o.recording.tracks
	var sorted []*track
	for _, key := range o.layout {
		for i, t := range rest {
			if t.name == key {
				sorted = append(sorted, t)
				rest = slices.Concat(rest[:i], rest[i+1:])
				break
			}
		}
	}
	o.recording.tracks = append(sorted, rest...)
}

// segment reads the files of one ordinary record, which begins at that frame of the whole. Neighbouring columns that name the same file are
// interleaved in it, frame by frame.
func (o *opening) segment(h Header, frame int) error {
	names := keys(h.Columns)
	frames := h.Frames
	for from := 0; from < len(h.Columns); {
		to := from + 1
		for to < len(h.Columns) && h.Columns[to].File == h.Columns[from].File {
			to++
		}
		columns, f, err := o.file(h.Columns[from:to], frames)
		if err != nil {
			return err
		}
		for i, samples := range columns {
			c := h.Columns[from+i]
			// The sum is of every sample, those of the skew among them, so one that was lost, doubled or misplaced between signals shows.
			if sum := checksum(samples); sum != c.Checksum {
				return fmt.Errorf("signal %q: checksum of %s is %d, the header says %d; the file is damaged or another record's",
					c.Name, c.File, sum, c.Checksum)
			}
			if frames == 0 {
				frames = len(samples) / c.PerFrame
			}
			if err := o.add(names[from+i], run{c, f, frame, samples}); err != nil {
				return err
			}
		}
		from = to
	}
	return nil
}

// file reads the interleaved samples of one file's columns. frames is 0 where the file's length decides.
func (o *opening) file(columns []Column, frames int) ([][]int32, format, error) {
	first := columns[0]
	perFrame := int64(0)
	for _, c := range columns {
		if c.Format != first.Format || c.Offset != first.Offset {
			return nil, format{}, fmt.Errorf("file %s: its signals differ in format or offset", first.File)
		}
		perFrame += int64(c.PerFrame)
	}
	f, err := formatOf(first.Format)
	if err != nil {
		return nil, f, fmt.Errorf("file %s: %w", first.File, err)
	}
	room := maxSamples - o.samples
	if want := int64(frames) * perFrame; want > room {
		return nil, f, fmt.Errorf("it has more than %d samples; replay a part of it", maxSamples)
	} else if frames > 0 {
		room = want
	}
	data, err := o.read(first.File, first.Offset+f.bytes(room)+int64(f.padding))
	if err != nil {
		return nil, f, err
	}
	if int64(len(data)) < first.Offset {
		return nil, f, fmt.Errorf("file %s ends before its first sample", first.File)
	}
	data = data[first.Offset:]
	n := int64(frames) * perFrame
	if frames == 0 {
		n = int64(len(data)) * 8 / int64(f.bits) / perFrame * perFrame
	}
	if !f.fits(int64(len(data)), n) || n == 0 {
		return nil, f, fmt.Errorf("file %s holds %d bytes of samples; expected %d frames of %d samples in format %d", first.File, len(data),
			n/perFrame, perFrame, first.Format)
	}
	o.samples += n
	all := make([]int32, n)
	f.decode(data, all)
	return apart(all, columns, int(n/perFrame)), f, nil
}

// apart takes the interleaved samples of a file's columns apart.
func apart(all []int32, columns []Column, frames int) [][]int32 {
	samples := make([][]int32, len(columns))
	for i, c := range columns {
		samples[i] = make([]int32, 0, frames*c.PerFrame)
	}
	for range frames {
		for i, c := range columns {
			samples[i] = append(samples[i], all[:c.PerFrame]...)
			all = all[c.PerFrame:]
		}
	}
	return samples
}

// add gives a run to its track.
func (o *opening) add(key string, r run) error {
	for _, t := range o.recording.tracks {
		if t.name != key {
			continue
		}
		last := t.runs[len(t.runs)-1]
		switch {
		case last.start == r.start: // two signals of one segment would be one
			return fmt.Errorf("signal %q is there twice", key)
		case r.column.PerFrame != t.perFrame:
			return fmt.Errorf("signal %q has %d samples in a frame, and %d in a former segment", key, r.column.PerFrame, t.perFrame)
		case r.column.Skew != last.column.Skew: // its samples would overlap, or be apart
			return fmt.Errorf("signal %q has a skew of %d, and of %d in a former segment", key, r.column.Skew, last.column.Skew)
		}
		t.runs = append(t.runs, r)
		return nil
	}
	if len(o.recording.tracks) == maxSignals {
		return fmt.Errorf("its segments have more than %d signals", maxSignals)
	}
	o.recording.tracks = append(o.recording.tracks, &track{name: key, perFrame: r.column.PerFrame, runs: []run{r}})
	return nil
}

func checksum(samples []int32) uint16 {
	var sum uint16
	for _, s := range samples {
		sum += uint16(s)
	}
	return sum
}

// Rows is the number of rows, each of which becomes one message.
func (r *Recording) Rows() int { return r.rows }

// readBounded reads a whole file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, errors.New(path + " is longer than its header allows")
	}
	return data, nil
}
