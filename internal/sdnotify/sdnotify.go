// Package sdnotify tells the service manager how a service is: sd_notify(3), without a library. Where no manager listens
// (NOTIFY_SOCKET is not set) nothing is sent and nothing is asked.
package sdnotify

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Service is what the manager is told about.
type Service struct {
	// Alive answers when the service does its work, with a word for 'systemctl status' that holds neither patient nor secret. It must
	// go through whatever would be stuck if the service were: the manager kills a service whose answers stay out. An error is an
	// answer that says no. ctx ends when the answer would come too late; an Alive that outlives it is not called again meanwhile.
	Alive func(ctx context.Context) (status string, err error)

	Log *slog.Logger // nil discards
}

// statusEvery is how often a service that has no watchdog is asked for its status.
const statusEvery = 10 * time.Second

// maxStatus bounds a status line; systemd cuts nothing, terminals do.
const maxStatus = 240

// Run tells READY=1 at the first answer of Alive, WATCHDOG=1 and a changed STATUS= at each further one, about three times within the
// manager's WatchdogSec, and STOPPING=1 when ctx ends; then it returns. Nothing that goes wrong with the manager ends a service: it is
// logged. The caller runs it beside the service's work.
func Run(ctx context.Context, s Service) {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	conn, err := dial(addr)
	if err != nil {
		s.Log.Error("The service manager cannot be told how this service is", "error", err)
		return
	}
	defer conn.Close()
	every, watched, err := interval(os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID"), os.Getpid())
	if err != nil {
		s.Log.Error("The service manager's watchdog is not served", "error", err)
	}
	failed := false
	run(ctx, s, every, watched, func(state string) {
		_, err := conn.Write([]byte(state))
		if err != nil && !failed {
			s.Log.Error("The service manager cannot be told how this service is", "error", err)
		}
		failed = err != nil
	})
}

// Extend gives a start that is still under way more time, with a word for 'systemctl status'. A manager that cannot be told changes
// nothing: its own time for a start holds.
func Extend(more time.Duration, status string) {
	tell(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=%s", more.Microseconds(), oneLine(status)))
}

// dial opens the manager's socket: a path, or an abstract name that begins with @.
func dial(addr string) (net.Conn, error) {
	if addr[0] != '/' && addr[0] != '@' {
		return nil, fmt.Errorf("NOTIFY_SOCKET is %q; expected a path, or an abstract name that begins with @", addr)
	}
	return net.DialUnix("unixgram", nil, &net.UnixAddr{Name: addr, Net: "unixgram"})
}

// interval is how often to ask: three times within the watchdog's time, so that one late answer kills nobody.
func interval(usec, pid string, self int) (every time.Duration, watched bool, err error) {
	if usec == "" || pid != "" && pid != strconv.Itoa(self) {
		return statusEvery, false, nil
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n < 3 || n > int64(24*time.Hour/time.Microsecond) {
		return statusEvery, false, fmt.Errorf("WATCHDOG_USEC is %q; expected microseconds, at most a day", usec)
	}
	return time.Duration(n) * time.Microsecond / 3, true, nil
}

type answer struct {
	status string
	err    error
}

func run(ctx context.Context, s Service, every time.Duration, watched bool, send func(state string)) {
	answers := make(chan answer, 1)
	ask := func() {
		limited, cancel := context.WithTimeout(ctx, every)
		defer cancel()
		status, err := s.Alive(limited)
		answers <- answer{status, err}
	}
	asked := true
	go ask()
	ready, former := false, ""
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			send("STOPPING=1\nSTATUS=stopping")
			return
		case <-tick.C:
			if !asked {
				asked = true
				go ask()
			}
		case a := <-answers:
			asked = false
			if ctx.Err() != nil {
				continue
			}
			if state := a.state(&ready, watched, &former); state != "" {
				send(state)
			}
			if a.err != nil {
				s.Log.Error("This service does not answer itself; its manager is not told that it is well", "error", a.err)
			}
		}
	}
}

// state is what an answer has to tell; "" when that is nothing new.
func (a answer) state(ready *bool, watched bool, former *string) string {
	var lines []string
	if a.err == nil {
		if !*ready {
			lines = append(lines, "READY=1")
			*ready = true
		}
		if watched {
			lines = append(lines, "WATCHDOG=1")
		}
	} else {
		a.status = "does not answer itself: " + a.err.Error()
	}
	if status := oneLine(a.status); status != *former {
		lines = append(lines, "STATUS="+status)
		*former = status
	}
	return strings.Join(lines, "\n")
}

// oneLine keeps a status from being read as further assignments.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxStatus {
		s = strings.ToValidUTF8(s[:maxStatus], "")
	}
	return s
}
