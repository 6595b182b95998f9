package agent

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wardlink/buffer"
	"wardlink/telemetry"
)

// Measurement is asked of a disk: how fast it keeps what a gateway keeps.
type Measurement struct {
	Dir    string        // a directory on the disk in question; a folder of its own is made in it, and removed
	Count  int           // how many commits at most; 0: no bound
	Time   time.Duration // how long at most, up to half an hour; 0: no bound. One of Count and Time must be given
	Size   int           // bytes of a batch, 64 to telemetry.MaxFrame
	Report func(commits int, took time.Duration)
}

// Measured is what MeasureBuffer found. Durations are in milliseconds.
type Measured struct {
	Commits  int      `json:"commits"`           // each one batch, on disk before the next began
	Bytes    int64    `json:"bytes"`             // of batches
	Seconds  float64  `json:"seconds"`           //
	Median   float64  `json:"commit_median_ms"`  //
	P99      float64  `json:"commit_p99_ms"`     //
	Longest  float64  `json:"commit_longest_ms"` //
	Files    int64    `json:"file_bytes"`        // that the buffer's files occupy
	Device   string   `json:"device"`            // "" when the kernel counts no device for the directory
	Written  int64    `json:"device_bytes"`      // that the kernel wrote to Device meanwhile, other programs' and the file system's own included
	Full     bool     `json:"full"`              // it ended early: the measurement's own cap, an eighth of the free space, was reached
	Found    uint64   `json:"batches_found"`     // by the check afterwards; Commits when all is well
	Problems []string `json:"problems"`          // what the check found wrong
}

// MeasureBuffer keeps batches of random bytes in a fresh buffer below m.Dir, one durable commit after the other, reads all of it back with
// buffer.Check, and removes it. The running agent's buffer is not touched, but shares the disk. That ctx ended is no error: what was
// measured until then is checked and returned.
func MeasureBuffer(ctx context.Context, m Measurement) (out Measured, err error) {
	if m.Size < 64 || m.Size > telemetry.MaxFrame {
		return out, fmt.Errorf("size: %d bytes; expected 64 to %d", m.Size, telemetry.MaxFrame)
	}
	if m.Count < 0 || m.Time < 0 || m.Count == 0 && m.Time == 0 || m.Time > 30*time.Minute {
		return out, errors.New("neither a number of commits nor a time bounds the measurement; expected one of them, above 0, and at most half an hour")
	}
	if _, err := os.Stat(m.Dir); err != nil {
		return out, err
	}
	limit := int64(min(diskFree(m.Dir)/8, 1<<30))
	if limit < minBuffer {
		return out, fmt.Errorf("%s: %d MB are free, and an eighth of it is used at most; expected at least %d MB", m.Dir, diskFree(m.Dir)>>20, 8*minBuffer>>20)
	}
	dir := filepath.Join(m.Dir, "wardlink-bench-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := buffer.Config{Dir: dir, Lanes: laneNames(), Order: laneOrder(), Cap: limit, Verify: checkMeasured}
	if err := buffer.Create(c); err != nil {
		return out, err
	}
	b, err := buffer.Open(c)
	if err != nil {
		return out, err
	}
	dev, before := deviceOf(dir)
	err = out.fill(ctx, b, m)
	if _, after := deviceOf(dir); dev != "" {
		out.Device, out.Written = dev, after-before
	}
	for _, l := range b.Stats().Lanes {
		out.Files += l.Bytes
	}
	if err = errors.Join(err, b.Close()); err != nil {
		return out, err
	}
	return out, out.check(c.Dir)
}

// A measured frame ends in the hash of what stands before it, as a sealed one does.
func checkMeasured(frame []byte) error {
	cut := len(frame) - sha256.Size
	if cut < 0 || sha256.Sum256(frame[:cut]) != [sha256.Size]byte(frame[cut:]) {
		return errors.New("its hash is another one than was written")
	}
	return nil
}

// fill commits until a bound is reached. The bytes are random, as sealed ones are: a disk that compresses must not look better than it is.
func (out *Measured) fill(ctx context.Context, b *buffer.Buffer, m Measurement) error {
	id := buffer.ID{Lane: uint8(telemetry.LaneVitals)}
	rand.Read(id.Epoch[:])
	record := make([]byte, 1300) // as long as a sealing record
	rand.Read(record)
	var took []time.Duration
	began := time.Now()
	for n := 0; (m.Count == 0 || n < m.Count) && (m.Time == 0 || time.Since(began) < m.Time) && ctx.Err() == nil; n++ {
		frame := make([]byte, m.Size-sha256.Size, m.Size)
		rand.Read(frame)
		sum := sha256.Sum256(frame)
		frame = append(frame, sum[:]...)
		id.Number = uint64(n)
		item := buffer.Item{ID: id, Frame: frame, Sealing: id.Epoch, Record: record}
		start := time.Now()
		if err := b.Append([]buffer.Item{item}); errors.Is(err, buffer.ErrFull) {
			out.Full = true
			break
		} else if err != nil {
			return err
		}
		took = append(took, time.Since(start))
		out.Commits, out.Bytes = n+1, out.Bytes+int64(len(frame))
		if m.Report != nil {
			m.Report(out.Commits, time.Since(began))
		}
	}
	out.Seconds = time.Since(began).Seconds()
	if len(took) > 0 {
		slices.Sort(took)
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		out.Median, out.P99, out.Longest = ms(took[len(took)/2]), ms(took[len(took)*99/100]), ms(took[len(took)-1])
	}
	return nil
}

// check reads everything back.
func (out *Measured) check(dir string) error {
	report, err := buffer.Check(dir, checkMeasured)
	if err != nil {
		return err
	}
	out.Problems = []string{}
	for _, f := range append(report.Findings, report.Notes...) {
		out.Problems = append(out.Problems, f.Path+": "+f.Problem)
	}
	for _, l := range report.Lanes {
		out.Found += l.Batches
	}
	if out.Found != uint64(out.Commits) {
		out.Problems = append(out.Problems, fmt.Sprintf("%d batches were kept and %d are there", out.Commits, out.Found))
	}
	return nil
}

// deviceOf is the block device below a directory and how many bytes were written to it since the machine started; "" for file systems
// that have none, such as tmpfs and overlays. Sectors of /proc/diskstats have 512 bytes, whatever the device's (Documentation/admin-guide/iostats.rst).
func deviceOf(dir string) (name string, written int64) {
	var st unix.Stat_t
	f, err := os.Open("/proc/diskstats")
	if err != nil || unix.Stat(dir, &st) != nil {
		return "", 0
	}
	defer f.Close()
	major, minor := strconv.Itoa(int(unix.Major(uint64(st.Dev)))), strconv.Itoa(int(unix.Minor(uint64(st.Dev))))
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 9 && fields[0] == major && fields[1] == minor {
			sectors, err := strconv.ParseInt(fields[9], 10, 64)
			if err != nil {
				return "", 0
			}
			return fields[2], sectors * 512
		}
	}
	return "", 0
}
