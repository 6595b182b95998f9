package bedside

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// noSample is format 16's value for "no reading" (signal(5) of the WFDB Applications Guide).
const noSample = math.MinInt16

// Recording is a decoded numerics record: a row of readings every few seconds or minutes.
type Recording struct {
	Header  Header
	samples [][]int16 // by column, then row
}

// OpenRecording reads the record whose header is path (with or without .hea) and the sample files beside it. Each column's
// checksum is compared, so that an answer without error is every sample as it was recorded.
func OpenRecording(path string) (*Recording, error) {
	path = strings.TrimSuffix(path, ".hea") + ".hea"
	raw, err := readBounded(path, maxHeader)
	if err != nil {
		return nil, fmt.Errorf("recording: %w", err)
	}
	h, err := ParseHeader(raw)
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", path, err)
	}
	r, err := decode(h, func(name string, limit int64) ([]byte, error) {
		return readBounded(filepath.Join(filepath.Dir(path), name), limit)
	})
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", path, err)
	}
	return r, nil
}

// decode reads the columns file by file: neighbouring columns that name the same file are interleaved in it, row by row.
func decode(h Header, read func(name string, limit int64) ([]byte, error)) (*Recording, error) {
	r := &Recording{Header: h}
	for from := 0; from < len(h.Columns); {
		to := from + 1
		for to < len(h.Columns) && h.Columns[to].File == h.Columns[from].File {
			to++
		}
		columns, err := decodeFile(h.Columns[from:to], h.Samples, read)
		if err != nil {
			return nil, err
		}
		r.samples = append(r.samples, columns...)
		from = to
	}
	// The sum is of every sample, so one that was lost, doubled or misplaced between columns shows.
	for i, c := range h.Columns {
		if len(r.samples[i]) != len(r.samples[0]) {
			return nil, fmt.Errorf("signal %q has %d samples, the first signal has %d", c.Name, len(r.samples[i]), len(r.samples[0]))
		}
		if sum := checksum(r.samples[i]); sum != c.Checksum {
			return nil, fmt.Errorf("signal %q: checksum of %s is %d, the header says %d; the file is damaged or another record's",
				c.Name, c.File, sum, c.Checksum)
		}
	}
	return r, nil
}

func decodeFile(columns []Column, rows int, read func(string, int64) ([]byte, error)) ([][]int16, error) {
	first := columns[0]
	for _, c := range columns {
		if c.Format != first.Format || c.Offset != first.Offset {
			return nil, fmt.Errorf("file %s: its signals differ in format or offset", first.File)
		}
	}
	if first.Format != 16 {
		return nil, fmt.Errorf("file %s: format %d is not supported; numerics records have format 16", first.File, first.Format)
	}
	// Another format needs its decoder here, beside decode16, and its own count of bytes for a row.
	row := int64(2 * len(columns))
	limit := first.Offset + maxSamples*row
	if rows > 0 {
		limit = first.Offset + int64(rows)*row
	}
	data, err := read(first.File, limit)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) < first.Offset {
		return nil, fmt.Errorf("file %s ends before its first sample", first.File)
	}
	data = data[first.Offset:]
	if int64(len(data))%row != 0 || rows > 0 && int64(len(data)) != int64(rows)*row {
		return nil, fmt.Errorf("file %s holds %d bytes of samples; expected %d rows of %d bytes", first.File, len(data), rows, row)
	}
	return decode16(data, len(columns)), nil
}

// decode16 takes interleaved 16-bit two's complement samples, low byte first, apart.
func decode16(data []byte, columns int) [][]int16 {
	rows := len(data) / 2 / columns
	samples := make([][]int16, columns)
	for c := range samples {
		samples[c] = make([]int16, rows)
		for r := range rows {
			samples[c][r] = int16(binary.LittleEndian.Uint16(data[2*(r*columns+c):]))
		}
	}
	return samples
}

func checksum(samples []int16) uint16 {
	var sum uint16
	for _, s := range samples {
		sum += uint16(s)
	}
	return sum
}

// Rows is the number of rows, each of which Replay sends as one message.
func (r *Recording) Rows() int { return len(r.samples[0]) }

// Replay gives the recording's rows with their distances kept and all times shifted so that the last row is at end. Every
// column must be a signal that this monitor knows. A 0, which often is a sensor that is off, is a reading and is sent as one.
func (r *Recording) Replay(end time.Time) (Source, error) {
	known := make([]Signal, len(r.Header.Columns))
	texts := make([]decimals, len(r.Header.Columns))
	for i, c := range r.Header.Columns {
		var err error
		if known[i], err = signalNamed(c.Name, c.Unit); err != nil {
			return nil, fmt.Errorf("replay %s: %w", r.Header.Name, err)
		}
		if texts[i], err = c.decimals(); err != nil {
			return nil, fmt.Errorf("replay %s: %w", r.Header.Name, err)
		}
	}
	rows := r.Rows()
	if r.Header.Rate > 1000 {
		return nil, fmt.Errorf("replay %s: %g rows a second are not numerics", r.Header.Name, r.Header.Rate)
	}
	if years := float64(rows) / r.Header.Rate / (366 * 24 * 3600); years > 100 {
		return nil, fmt.Errorf("replay %s: it would last %.0f years", r.Header.Name, years)
	}
	return func(yield func(Row) bool) {
		for n := range rows {
			// From the end, so that the last row is exactly at end however the rate was rounded in the header.
			before := math.Round(float64(rows-1-n) * 1000 / r.Header.Rate) // ms
			row := Row{At: time.UnixMilli(end.UnixMilli() - int64(before)), Values: make([]Value, len(known))}
			for i := range known {
				row.Values[i].Signal = known[i]
				if sample := r.samples[i][n]; sample != noSample {
					row.Values[i].Text = texts[i].text(sample)
				}
			}
			if !yield(row) {
				return
			}
		}
	}, nil
}

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
