package sdnotify

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// said collects what a service tells, with the time since its start.
type said struct {
	mu     sync.Mutex
	states []string
}

func (s *said) send(state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states = append(s.states, strings.ReplaceAll(state, "\n", " "))
}

func (s *said) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.states)
}

func (s *said) count(part string) (n int) {
	for _, state := range s.all() {
		if strings.Contains(state, part) {
			n++
		}
	}
	return n
}

func TestServiceThatAnswersIsReadyWatchedAndStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var told said
		done := make(chan struct{})
		go func() {
			run(ctx, Service{Alive: func(context.Context) (string, error) { return "two sources", nil }}, 10*time.Second, true, told.send)
			close(done)
		}()
		synctest.Wait()
		if len(told.all()) != 1 || told.all()[0] != "READY=1 WATCHDOG=1 STATUS=two sources" {
			t.Fatalf("at first: %q", told.all())
		}
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if n := told.count("WATCHDOG=1"); n != 7 || told.count("STATUS=") != 1 || told.count("READY=1") != 1 {
			t.Errorf("after a minute: %d times WATCHDOG=1, expected 7, one STATUS and one READY: %q", n, told.all())
		}
		stop()
		<-done
		if last := told.all()[len(told.all())-1]; last != "STOPPING=1 STATUS=stopping" {
			t.Errorf("last word: %q", last)
		}
	})
}

func TestStuckServiceIsNotVouchedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		stuck, asked := make(chan struct{}), atomic.Int32{}
		var told said
		done := make(chan struct{})
		go func() {
			run(ctx, Service{Alive: func(context.Context) (string, error) {
				if asked.Add(1) > 2 {
					<-stuck // deaf to its context, as a dead lock is
				}
				return "", nil
			}}, 10*time.Second, true, told.send)
			close(done)
		}()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := told.count("WATCHDOG=1"); n != 2 || asked.Load() != 3 {
			t.Errorf("vouched for %d times and asked %d times; expected 2 and 3: %q", n, asked.Load(), told.all())
		}
		stop()
		<-done
		close(stuck)
	})
}

func TestServiceThatSaysNoIsNotVouchedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var well atomic.Bool
		var told said
		go run(ctx, Service{Alive: func(context.Context) (string, error) {
			if !well.Load() {
				return "", errors.New("no commit\nREADY=1")
			}
			return "well", nil
		}, Log: slog.New(slog.DiscardHandler)}, time.Second, true, told.send)
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		if len(told.all()) != 1 || told.all()[0] != "STATUS=does not answer itself: no commit READY=1" {
			t.Errorf("while it says no: %q", told.all())
		}
		well.Store(true)
		time.Sleep(time.Second)
		synctest.Wait()
		if len(told.all()) != 2 || told.all()[1] != "READY=1 WATCHDOG=1 STATUS=well" {
			t.Errorf("then: %q", told.all())
		}
	})
}

func TestRunSpeaksToTheManagersSocket(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@wardlink-test-" + strconv.Itoa(os.Getpid())} {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		t.Setenv("WATCHDOG_USEC", "60000000")
		t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			Run(ctx, Service{Alive: func(context.Context) (string, error) { return "ok", nil }})
			close(done)
		}()
		buf := make([]byte, 512)
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if got := string(buf[:n]); err != nil || got != "READY=1\nWATCHDOG=1\nSTATUS=ok" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		stop()
		<-done
		if n, err = conn.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "STOPPING=1") {
			t.Errorf("%s: %q, %v", name, buf[:n], err)
		}
	}
}

func TestWithoutManagerNothingIsAsked(t *testing.T) {
	for _, addr := range []string{"", "relative/path", filepath.Join(t.TempDir(), "nobody")} {
		t.Setenv("NOTIFY_SOCKET", addr)
		Run(t.Context(), Service{Alive: func(context.Context) (string, error) { t.Error("asked"); return "", nil }})
	}
}

func TestInterval(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		every     time.Duration
		watched   bool
		fails     bool
	}{
		{"", "", statusEvery, false, false},
		{"60000000", "7", 20 * time.Second, true, false},
		{"60000000", "", 20 * time.Second, true, false},
		{"60000000", "8", statusEvery, false, false},
		{"-1", "7", statusEvery, false, true},
		{"99999999999999999999", "7", statusEvery, false, true},
	} {
		every, watched, err := interval(c.usec, c.pid, 7)
		if every != c.every || watched != c.watched || (err != nil) != c.fails {
			t.Errorf("%q %q: %s %t %v", c.usec, c.pid, every, watched, err)
		}
	}
}

func TestExtendGivesAStartMoreTime(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	Extend(time.Hour, "copying\nREADY=1")
	buf := make([]byte, 512)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(buf)
	if got := string(buf[:n]); err != nil || !strings.HasPrefix(got, "EXTEND_TIMEOUT_USEC=3600000000\nSTATUS=copying") || strings.Contains(got, "\nREADY=1") {
		t.Errorf("%q, %v", got, err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	Extend(time.Hour, "nobody listens")
}
