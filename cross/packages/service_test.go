//go:build packages

package packages

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"wardlink/internal/child"
)

// unit is what the stand-in for the service manager takes from a unit file.
type unit map[string][]string

func (r *root) unit(name string) unit {
	r.Helper()
	text, err := os.ReadFile(r.path("/usr/lib/systemd/system", name+".service"))
	if err != nil {
		r.Fatal(err)
	}
	u := unit{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			u[key] = append(u[key], value)
		}
	}
	if u.one("Type") != "notify" || u.one("ExecStart") == "" || u.one("User") == "" {
		r.Fatalf("%s: %v", name, u)
	}
	return u
}

func (u unit) one(key string) string { return strings.Join(u[key], " ") }

// service is a unit that runs. Nothing of systemd is here but what a service sees of it: user, groups, limits, no privileges, and the
// socket that it notifies. The sandbox itself is judged by systemd-analyze.
type service struct {
	*root
	name string
	cmd  *exec.Cmd
	log  *os.File
	conn *net.UnixConn
	done chan struct{}

	mu   sync.Mutex
	told map[string]string // last value of each assignment
	pats int               // times that the watchdog was told
}

// watchdog is shorter than the unit's, so that the test sees it patted.
const watchdog = 3 * time.Second

// start runs a unit's command and waits for its READY=1.
func (r *root) start(name string) *service {
	r.Helper()
	u := r.unit(name)
	groups := u.one("Group")
	if g := u.one("SupplementaryGroups"); g != "" {
		groups += "," + g
	}
	s := &service{root: r, name: name, done: make(chan struct{}), told: map[string]string{}}
	socket := "/run/notify-" + name
	_ = os.Remove(r.path(socket)) // of a former start
	var err error
	if s.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: r.path(socket), Net: "unixgram"}); err != nil {
		r.Fatal(err)
	}
	if err := os.Chmod(r.path(socket), 0o777); err != nil {
		r.Fatal(err)
	}
	if s.log, err = os.OpenFile(r.path("/root", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		r.Fatal(err)
	}
	args := append([]string{"setpriv", "--reuid=" + u.one("User"), "--regid=" + u.one("Group"), "--groups=" + groups,
		"--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"}, strings.Fields(u.one("ExecStart"))...)
	s.cmd = r.command(args...)
	s.cmd.Env = append(s.cmd.Env, "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC="+strconv.Itoa(int(watchdog/time.Microsecond)))
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		r.Fatal(err)
	}
	go func() { _ = s.cmd.Wait(); close(s.done) }() // what became of it is in ProcessState
	go s.listen()
	r.Cleanup(s.stop)
	s.await("READY=1 of "+name, func() bool { return s.last("READY") == "1" })
	return s
}

func (s *service) listen() {
	buf := make([]byte, 4096)
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		for line := range strings.Lines(string(buf[:n])) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			s.told[key] = value
			if key == "WATCHDOG" {
				s.pats++
			}
		}
		s.mu.Unlock()
	}
}

func (s *service) last(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told[key]
}

func (s *service) patted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pats
}

// await waits for something while the service must live.
func (s *service) await(what string, ok func() bool) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := child.Until(ctx, what, nil, func(context.Context) (bool, error) {
		select {
		case <-s.done:
			return false, fmt.Errorf("%s ended: %v", s.name, s.cmd.ProcessState)
		default:
			return ok(), nil
		}
	}); err != nil {
		text, _ := os.ReadFile(s.path("/root", s.name+".log"))
		s.Fatalf("%v\nit told %v\nits last words:\n%s", err, s.told, text[max(0, len(text)-4000):])
	}
}

// stop is systemctl stop: SIGTERM to the main process, which must end in good order.
func (s *service) stop() {
	select {
	case <-s.done:
		return
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.Error(err)
	}
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		s.Errorf("%s does not stop", s.name)
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		s.Errorf("%s stopped with %d", s.name, code)
	}
	if s.last("STOPPING") != "1" {
		s.Errorf("%s did not say that it stops", s.name)
	}
	_ = s.conn.Close()
	_ = s.log.Close()
}
