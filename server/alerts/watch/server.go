package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"wardlink/server/alerts"
	"wardlink/server/translog"
)

// journalWatch watches for commits that fail, and for ones that do not come back: a disk that hangs reports no error.
type journalWatch struct {
	journal Journal
	seq     uint64
	stuck   int // looks at which something waited and nothing was committed
}

func (j *journalWatch) look(context.Context, time.Time) ([]alerts.Condition, error) {
	st := j.journal.Stats()
	if st.Queued > 0 && st.Committed == j.seq {
		j.stuck++
	} else {
		j.stuck = 0
	}
	j.seq = st.Committed
	if err := j.journal.Health(); err != nil {
		return one(map[string]string{"error": err.Error()}), nil
	}
	if j.stuck >= 2 {
		return one(map[string]string{"error": "commits do not come back", "waiting_bytes": fmt.Sprint(st.Queued)}), nil
	}
	return nil, nil
}

// one is the one condition of the server as a whole.
func one(detail map[string]string) []alerts.Condition {
	return []alerts.Condition{{Subject: "server", Detail: detail}}
}

// databaseWatch writes a row once a minute, and at each look while that fails.
type databaseWatch struct {
	memory  Memory
	written time.Time
	failed  int
	err     error
}

func (d *databaseWatch) look(ctx context.Context, now time.Time) ([]alerts.Condition, error) {
	if d.failed > 0 || now.Sub(d.written) >= time.Minute-time.Second || now.Before(d.written) {
		d.err = d.memory.Pulse(ctx)
		if d.err != nil {
			d.failed++
		} else {
			d.failed, d.written = 0, now
		}
	}
	if d.failed < 2 { // a long transaction of somebody else is no failure
		return nil, nil
	}
	return one(map[string]string{"error": d.err.Error()}), nil
}

// logWatch measures how long the oldest entry waits that no signed checkpoint covers, by marking where the journal stands.
type logWatch struct {
	journal Journal
	stats   func() translog.Stats
	most    time.Duration
	mark    uint64
	since   time.Time // zero: nothing is marked
}

func (l *logWatch) look(_ context.Context, now time.Time) ([]alerts.Condition, error) {
	log, committed := l.stats(), l.journal.Stats().Committed
	if log.Signed >= l.mark || now.Before(l.since) {
		l.since = time.Time{}
	}
	if l.since.IsZero() {
		if committed > log.Signed {
			l.mark, l.since = committed, now
		}
		return nil, nil
	}
	behind := now.Sub(l.since)
	if behind < l.most {
		return nil, nil
	}
	detail := map[string]string{"behind": rough(behind), "entries": fmt.Sprint(committed - min(committed, log.Signed))}
	if log.Failing != nil {
		detail["error"] = log.Failing.Error()
	}
	out := one(detail)
	if behind >= 10*l.most {
		out[0].Severity = alerts.Critical
	}
	return out, nil
}

func recordsLook(r Records, most time.Duration) look {
	return func(ctx context.Context, now time.Time) ([]alerts.Condition, error) {
		b, err := r.Backlog(ctx)
		if err != nil {
			return nil, err
		}
		lag := b.Lag
		if !b.Oldest.IsZero() {
			lag = max(lag, now.Sub(b.Oldest))
		}
		if lag < most {
			return nil, nil
		}
		return one(map[string]string{"behind": rough(lag), "pending": fmt.Sprint(b.Pending)}), nil
	}
}

// backupLook looks at the stamp's time. A stamp that is missing is as bad as an old one: somebody has configured it.
func backupLook(path string, most time.Duration) look {
	return func(_ context.Context, now time.Time) ([]alerts.Condition, error) {
		if path == "" {
			return nil, nil
		}
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return []alerts.Condition{{Subject: "stamp", Detail: map[string]string{"error": "the stamp file does not exist"}}}, nil
		case err != nil:
			return nil, err
		}
		age := now.Sub(info.ModTime())
		detail := map[string]string{"last": rfc(info.ModTime())}
		switch {
		case age >= most:
			detail["age"] = rough(age)
		case age < -24*time.Hour:
			detail["error"] = "the stamp's time is in the future"
		default:
			return nil, nil
		}
		return []alerts.Condition{{Subject: "stamp", Detail: detail}}, nil
	}
}

func loginLook(logins func(context.Context) (map[string]string, error)) look {
	return func(ctx context.Context, _ time.Time) (out []alerts.Condition, err error) {
		if logins == nil {
			return nil, nil
		}
		faults, err := logins(ctx)
		for node, fault := range faults {
			out = append(out, alerts.Condition{Subject: node, Detail: map[string]string{"login": fault}})
		}
		return out, err
	}
}

// recoveryGrace is how long a new server may be without its recovery file proven: whoever made it is still at work.
const recoveryGrace = 24 * time.Hour

func recoveryLook(unproven func() (time.Time, bool)) look {
	return func(_ context.Context, now time.Time) ([]alerts.Condition, error) {
		since, ok := unproven()
		if !ok || now.Sub(since) < recoveryGrace {
			return nil, nil
		}
		return []alerts.Condition{{Subject: "server", Detail: map[string]string{"since": rfc(since)}}}, nil
	}
}

// clock compares the clock with the time that passed by the kernel's monotonic clock, and at the start with the clock as it was written
// last. A jump is an alert for clockTime. Others are that the server does not vouch for its clock, so that gateways without one stay
// provisional, and that retention does not believe it and disposes of nothing, each for as long as it lasts.
type clock struct {
	memory  Memory
	kept    Retention
	vouched func() bool
	most    time.Duration
	elapsed func(since time.Time) time.Duration // by the monotonic clock
	last    time.Time
	jumped  time.Time // by the monotonic clock in it
	moved   time.Duration
}

const clockTime = time.Hour

func newClock(cfg Config) *clock {
	return &clock{memory: cfg.Memory, kept: cfg.Retention, vouched: cfg.Vouched, most: cfg.Limits.ClockJump, elapsed: time.Since}
}

func (c *clock) look(ctx context.Context, now time.Time) ([]alerts.Condition, error) {
	if c.last.IsZero() {
		before, err := c.memory.LastPulse(ctx)
		if err != nil {
			return nil, err
		}
		if !before.IsZero() && before.Sub(now) >= c.most {
			c.jumped, c.moved = now, now.Sub(before)
		}
	} else if moved := wall(now).Sub(wall(c.last)) - (c.elapsed(c.last) - c.elapsed(now)); moved.Abs() >= c.most {
		c.jumped, c.moved = now, moved
	}
	c.last = now
	var out []alerts.Condition
	if !c.jumped.IsZero() && c.elapsed(c.jumped) < clockTime {
		out = one(moved(c.moved))
	}
	if !c.vouched() {
		out = append(out, alerts.Condition{Subject: "signed-time"})
	}
	state, err := c.kept.Retention(ctx)
	if err != nil {
		return nil, err
	}
	if state.Suspended {
		out = append(out, alerts.Condition{Subject: "retention", Detail: moved(state.Drift)})
	}
	return out, nil
}

func moved(by time.Duration) map[string]string {
	direction := "forward"
	if by < 0 {
		direction = "back"
	}
	return map[string]string{"moved": rough(by.Abs()), "direction": direction}
}

// wall takes the monotonic reading away.
func wall(t time.Time) time.Time { return t.Round(0) }

// statfs is what is known about a file system.
type statfs struct {
	size, free    uint64 // bytes; free for us
	files, unused uint64 // inodes
	device        uint64
}

func readStatfs(path string) (statfs, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return statfs{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	var file syscall.Stat_t
	if err := syscall.Stat(path, &file); err != nil {
		return statfs{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	block := uint64(st.Bsize)
	return statfs{size: st.Blocks * block, free: st.Bavail * block, files: st.Files, unused: st.Ffree, device: file.Dev}, nil
}

// disk watches the free space of the places, each file system once.
type disk struct {
	cfg    Config
	stat   func(path string) (statfs, error)
	trends map[uint64]*trend
}

// trend remembers the free space of the last hours, one sample for each sampleTime.
type trend struct {
	at   []time.Time
	free []uint64
}

const (
	sampleTime = 15 * time.Minute
	trendTime  = 24 * time.Hour
	trendLeast = 6 * time.Hour // before that a rate says little
	gb         = 1 << 30
)

func newDisk(cfg Config) *disk {
	return &disk{cfg: cfg, stat: readStatfs, trends: make(map[uint64]*trend)}
}

func (d *disk) look(_ context.Context, now time.Time) (out []alerts.Condition, err error) {
	seen := make(map[uint64]bool)
	for _, place := range d.cfg.Places {
		st, err := d.stat(place.Path)
		if err != nil {
			return nil, err
		}
		if seen[st.device] || st.size == 0 {
			continue
		}
		seen[st.device] = true
		if d.trends[st.device] == nil {
			d.trends[st.device] = &trend{}
		}
		days, known := d.trends[st.device].days(now, st.free)
		if c, low := d.judge(place.Name, st, days, known); low {
			out = append(out, c)
		}
	}
	return out, nil
}

// days is how long the free space lasts at the rate of the last hours.
func (t *trend) days(now time.Time, free uint64) (float64, bool) {
	if n := len(t.at); n > 0 && now.Before(t.at[n-1]) {
		t.at, t.free = nil, nil
	}
	if n := len(t.at); n == 0 || now.Sub(t.at[n-1]) >= sampleTime {
		t.at, t.free = append(t.at, now), append(t.free, free)
	}
	for len(t.at) > 1 && now.Sub(t.at[0]) > trendTime {
		t.at, t.free = t.at[1:], t.free[1:]
	}
	span := now.Sub(t.at[0])
	if span < trendLeast || free >= t.free[0] {
		return 0, false
	}
	perDay := float64(t.free[0]-free) / span.Hours() * 24
	return float64(free) / perDay, true
}

func (d *disk) judge(name string, st statfs, days float64, known bool) (alerts.Condition, bool) {
	l := d.cfg.Limits
	percent := float64(st.free) / float64(st.size) * 100
	files := 100.0
	if st.files > 0 { // some file systems have no fixed number
		files = float64(st.unused) / float64(st.files) * 100
	}
	detail := map[string]string{"free": fmt.Sprintf("%.1f GB", float64(st.free)/gb), "free_percent": fmt.Sprintf("%.1f", percent)}
	if known {
		detail["days_left"] = fmt.Sprintf("%.1f", days)
	}
	if files < percent {
		detail["free_files_percent"] = fmt.Sprintf("%.1f", files)
	}
	least := min(percent, files)
	limit := float64(l.DiskFreeGB) * gb
	c := alerts.Condition{Subject: name, Detail: detail}
	if least < float64(l.DiskFreePercent)/3 || float64(st.free) < limit/4 {
		c.Severity = alerts.Critical
	}
	low := least < float64(l.DiskFreePercent) || float64(st.free) < limit || known && days < float64(l.DiskDays)
	return c, low
}
