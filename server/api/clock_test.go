package api

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
)

// handClock is a wall clock and a monotonic one that the test moves.
type handClock struct {
	wall   time.Time
	mono   time.Duration
	path   string
	last   time.Time
	events []audit.Type
	public ed25519.PublicKey
	key    ed25519.PrivateKey
}

func newHandClock(t *testing.T) *handClock {
	h := &handClock{wall: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), path: filepath.Join(t.TempDir(), "clock")}
	h.public, h.key, _ = ed25519.GenerateKey(nil)
	return h
}

func (h *handClock) pass(d time.Duration) { h.wall, h.mono = h.wall.Add(d), h.mono+d }

func (h *handClock) open(t *testing.T) *Clock {
	t.Helper()
	h.mono = 0 // a new process
	c, err := OpenClock(ClockConfig{
		Path: h.path, Key: h.key, LastEntry: h.last, Log: slog.New(slog.DiscardHandler), Event: func(e audit.Event) { h.events = append(h.events, e.Type) },
		Now: func() time.Time { return h.wall }, Elapsed: func() time.Duration { return h.mono },
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask is a gateway's request.
func (h *handClock) ask(t *testing.T, c *Clock) (time.Time, int) {
	t.Helper()
	r := enroll.NewTimeRequest("icu-7")
	body, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequest(http.MethodPost, enroll.TimePath, bytes.NewReader(body)))
	if w.Code != http.StatusOK {
		return time.Time{}, w.Code
	}
	at, err := enroll.VerifyTime(w.Body.Bytes(), h.public, r)
	if err != nil {
		t.Fatal(err)
	}
	return at, w.Code
}

func TestClockIsSignedUnlessItMoved(t *testing.T) {
	h := newHandClock(t)
	c := h.open(t)
	for _, step := range []struct {
		what string
		do   func()
		code int
	}{
		{"a new server", func() {}, 200},
		{"time passes, for years", func() { h.pass(5 * 365 * 24 * time.Hour) }, 200},
		{"a step of 47 h", func() { h.wall = h.wall.Add(47 * time.Hour) }, 200},
		{"a step back of 47 h", func() { h.wall = h.wall.Add(-47 * time.Hour) }, 200},
		{"a step of ten years", func() { h.wall = h.wall.Add(87600 * time.Hour) }, 503},
		{"time passes", func() { h.pass(24 * time.Hour) }, 503},
		{"a restart settles nothing", func() { c = h.open(t) }, 503},
		{"the clock is set right", func() { h.wall = h.wall.Add(-87600 * time.Hour) }, 200},
		{"a step back to 1970", func() { h.wall = time.Unix(100, 0) }, 503},
		{"set right again", func() { h.wall = time.Date(2031, 11, 22, 12, 0, 0, 0, time.UTC) }, 200},
		{"off for a day", func() { h.pass(24 * time.Hour); c = h.open(t) }, 200},
		{"off for three days", func() { h.pass(72 * time.Hour); c = h.open(t) }, 503},
		{"an operator confirms", func() { c.confirm() }, 200},
		{"and it stays so", func() { c = h.open(t) }, 200},
	} {
		step.do()
		at, code := h.ask(t, c)
		if code != step.code || code == 200 && !at.Equal(h.wall) {
			t.Errorf("%s: %d, %v; expected %d at %v", step.what, code, at, step.code, h.wall)
		}
		if s := c.State(); s.Vouched != (step.code == 200) || s.Vouched == strings.Contains(s.Doubt, "wardlink clock confirm") {
			t.Errorf("%s: %+v", step.what, s)
		}
	}
	if n := len(h.events); n != 4 { // ten years, the restart under doubt, 1970, three days
		t.Errorf("%d events %v; expected one for each time that doubt began", n, h.events)
	}
}

// TestAClockThatWalksIsNotVouchedFor: whoever answers the server's NTP may set its clock by less than 48 hours, again and again.
func TestAClockThatWalksIsNotVouchedFor(t *testing.T) {
	for _, step := range []time.Duration{47 * time.Hour, -47 * time.Hour, 30 * time.Minute} {
		h := newHandClock(t)
		c := h.open(t)
		code := 200
		for range 200 {
			h.pass(time.Minute)
			h.wall = h.wall.Add(step)
			if _, code = h.ask(t, c); code != 200 {
				break
			}
		}
		if code != 503 {
			t.Errorf("steps of %s: %v is vouched for", step, h.wall)
		}
		h.wall = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC).Add(h.mono)
		if _, code := h.ask(t, c); code != 200 {
			t.Errorf("steps of %s: set right, and %d", step, code)
		}
		h.wall = h.wall.Add(100 * time.Hour)
		c.confirm()
		if _, code := h.ask(t, c); code != 200 {
			t.Errorf("steps of %s: confirmed, and %d", step, code)
		}
	}
}

// TestClockIsHeldAgainstTheJournal where nothing is kept: a server of an older release, or a restored one.
func TestClockIsHeldAgainstTheJournal(t *testing.T) {
	for days, want := range map[int]int{-3: 503, -1: 200, 1: 200, 3: 503} {
		h := newHandClock(t)
		h.last = h.wall.AddDate(0, 0, days)
		if _, code := h.ask(t, h.open(t)); code != want {
			t.Errorf("last entry %d days from now: %d; expected %d", days, code, want)
		}
	}
}

func TestTimeIsAskedWithABoundedRequest(t *testing.T) {
	h := newHandClock(t)
	c := h.open(t)
	for name, r := range map[string]struct {
		method, body string
		code         int
	}{
		"get":     {http.MethodGet, "", http.StatusMethodNotAllowed},
		"empty":   {http.MethodPost, "", http.StatusBadRequest},
		"garbage": {http.MethodPost, "time?", http.StatusBadRequest},
		"long":    {http.MethodPost, strings.Repeat("x", enroll.MaxTimeBytes+1), http.StatusRequestEntityTooLarge},
	} {
		w := httptest.NewRecorder()
		c.ServeHTTP(w, httptest.NewRequest(r.method, enroll.TimePath, strings.NewReader(r.body)))
		if w.Code != r.code {
			t.Errorf("%s: %d; expected %d", name, w.Code, r.code)
		}
	}
	h.wall = h.wall.AddDate(10, 0, 0)
	if _, err := c.vouch(); !errors.Is(err, ErrDoubt) {
		t.Errorf("%v; expected ErrDoubt", err)
	}
}
