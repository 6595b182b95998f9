// Package pgserver runs PostgreSQL servers of the distribution's own packages for the demonstration and for tests. A hospital's server is
// run by whoever runs its databases; nothing here is for that.
//
// A server belongs to the process that started it and ends with it, however that ends: a shell watches a pipe whose other end the process
// holds, and PostgreSQL is told by the kernel when that shell is gone.
package pgserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"
)

// Superuser is the role that initdb makes. Connections on the socket are trusted, whatever role they name.
const Superuser = "postgres"

// Config is how a server is made. The zero value is a server on a socket that flushes every commit, on a memory disk where there is one.
type Config struct {
	// Base is the directory in which the server's own is made; it must be short, since a socket's path is bounded (107 bytes). Empty: a
	// memory disk where the machine has one, so that flushing costs a test nothing; else the system's temporary directory.
	Base string
	// Settings override postgresql.conf: "max_connections": "20", "fsync": "off", "listen_addresses": "127.0.0.1", "port": "54321".
	Settings map[string]string
	// HBA are the lines of pg_hba.conf; nil: local connections are trusted, and loopback's.
	HBA []string
}

// Server is one running PostgreSQL server with its own files. Its methods may be called by several goroutines.
type Server struct {
	dir  string
	bin  string
	port string

	mu      sync.Mutex
	watcher *exec.Cmd
	hold    io.WriteCloser // the pipe that the watcher reads
	pid     int            // the postmaster's; 0: it does not run
}

// startTime bounds how long a server may take to accept connections; recovery after a kill is part of it.
const startTime = 60 * time.Second

// Binaries is the directory of the newest PostgreSQL among the distribution's packages.
func Binaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	newest, dir := 0, ""
	for _, path := range found {
		bin := filepath.Dir(path)
		if n, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil && n > newest {
			newest, dir = n, bin
		}
	}
	if dir == "" {
		return "", errors.New("PostgreSQL: no /usr/lib/postgresql/*/bin/postgres; install the distribution's package postgresql (make need-postgres)")
	}
	return dir, nil
}

// New makes a server with empty files and starts it.
func New(c Config) (s *Server, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("PostgreSQL server: %w", err)
		}
	}()
	bin, err := Binaries()
	if err != nil {
		return nil, err
	}
	base := c.Base
	if base == "" {
		base = memory()
	}
	dir, err := os.MkdirTemp(base, "pg")
	if err != nil {
		return nil, err
	}
	s = &Server{dir: dir, bin: bin, port: "5432"}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := initialise(bin, s.data()); err != nil {
		return nil, err
	}
	if err := s.configure(c); err != nil {
		return nil, err
	}
	if err := own(dir); err != nil {
		return nil, err
	}
	return s, s.Start()
}

// memory is a directory on a memory disk with room, or the system's temporary directory.
func memory() string {
	const shm, room = "/dev/shm", 1 << 30
	var disk syscall.Statfs_t
	if err := syscall.Statfs(shm, &disk); err != nil || int64(disk.Bavail)*int64(disk.Bsize) < room || unix.Access(shm, unix.W_OK) != nil {
		return os.TempDir()
	}
	return shm
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// configure writes what differs from the defaults. Shared memory is in files of the server's own directory, so that a server that was
// killed leaves nothing elsewhere.
func (s *Server) configure(c Config) error {
	// Tables of a test have no statistics, and a plan that is thought to be dear would be compiled each time: jit.
	settings := map[string]string{
		"listen_addresses": "", "unix_socket_directories": s.dir, "dynamic_shared_memory_type": "mmap", "max_connections": "200",
		"shared_buffers": "64MB", "jit": "off", "min_wal_size": "32MB", "max_wal_size": "1GB", "log_line_prefix": "%m [%p] %u ", "timezone": "UTC",
	}
	maps.Copy(settings, c.Settings)
	s.port = "5432"
	if p := settings["port"]; p != "" {
		s.port = p
	}
	var conf strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	hba := c.HBA
	if hba == nil {
		hba = []string{"local all all trust", "host all all 127.0.0.1/32 trust", "host all all ::1/128 trust"}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(s.data(), "postgresql.auto.conf"), []byte(conf.String()), 0o600),
		os.WriteFile(filepath.Join(s.data(), "pg_hba.conf"), []byte(strings.Join(hba, "\n")+"\n"), 0o600))
}

// Set changes settings of the server's file; they hold from its next start.
func (s *Server) Set(settings map[string]string) error {
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if _, err := fmt.Fprintf(f, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''")); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// watch starts its arguments and waits until the pipe at its standard input ends. "leave" on the pipe means that the process still lives
// and keeps the files.
const watch = `dir=$1; shift
cd "$dir" || exit 1
"$@" </dev/null >>log 2>&1 &
pid=$!
echo $pid
exec >/dev/null
word=
read -r word
kill -QUIT $pid 2>/dev/null
wait $pid
[ "$word" = leave ] || rm -rf "$dir"`

// Start starts a server that was stopped or killed, and returns when it takes connections.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid != 0 {
		return errors.New("it runs already")
	}
	args := append([]string{"-c", watch, "pgserver", s.dir}, as("setpriv", "--pdeathsig", "QUIT")...)
	cmd := exec.Command("sh", append(args, filepath.Join(s.bin, "postgres"), "-D", s.data())...)
	// A session of its own: what ends the process's terminal or group must leave the watcher, which then cleans up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	hold, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, bad := strconv.Atoi(strings.TrimSpace(line))
	if err = errors.Join(err, bad); err != nil {
		return errors.Join(err, hold.Close(), cmd.Wait())
	}
	s.watcher, s.hold, s.pid = cmd, hold, pid
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, s.SuperURL())
		if err == nil {
			return conn.Close(ctx)
		}
		if _, gone := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); ctx.Err() != nil || gone != nil { // one that has ended waits for its parent, without a program
			return errors.Join(fmt.Errorf("it did not start: %w; it says: %s", err, s.tail()), s.end())
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tail is the end of the server's log.
func (s *Server) tail() string {
	log, err := os.ReadFile(s.Log())
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(log[max(0, len(log)-2000):]))
}

// end ends watcher and server and leaves the files. The caller holds mu.
func (s *Server) end() error {
	if s.pid == 0 {
		return nil
	}
	_, err := io.WriteString(s.hold, "leave\n")
	err = errors.Join(err, s.hold.Close())
	s.pid = 0
	_ = s.watcher.Wait() // its exit status is PostgreSQL's, which was told to go at once
	return err
}

// Kill ends postmaster and backends with SIGKILL, as a crash of the machine would but for what the disk had not written.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid == 0 {
		return errors.New("it does not run")
	}
	// A postmaster that stands still forks no more.
	if err := syscall.Kill(s.pid, syscall.SIGSTOP); err != nil {
		return err
	}
	children, err := childrenOf(s.pid)
	if err != nil {
		return err
	}
	for _, pid := range append(children, s.pid) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	err = s.end()
	for _, pid := range children { // the next postmaster refuses while one of them is attached to the shared memory
		for range 500 {
			if syscall.Kill(pid, 0) != nil || zombie(pid) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return errors.Join(err, s.forget())
}

// forget removes the System V segment by which a postmaster knows that another one is there: one that was killed leaves it.
func (s *Server) forget() error {
	data, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	if err != nil {
		return err
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) < 7 {
		return nil
	}
	if words := strings.Fields(lines[6]); len(words) == 2 {
		if id, err := strconv.Atoi(words[1]); err == nil {
			_, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil)
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
				return err
			}
		}
	}
	return nil
}

// Halt stops the server as an operator's "pg_ctl stop -m fast" does, and keeps its files; Start goes on with them.
func (s *Server) Halt() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid == 0 {
		return nil
	}
	if err := syscall.Kill(s.pid, syscall.SIGINT); err != nil {
		return err
	}
	for range 3000 {
		if syscall.Kill(s.pid, 0) != nil || zombie(s.pid) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return s.end()
}

// Pause stops (true) or continues (false) the postmaster and every backend, as a machine that hangs does. Connections stay open.
func (s *Server) Pause(stop bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	children, err := childrenOf(s.pid)
	if err != nil {
		return err
	}
	signal := syscall.SIGCONT
	if stop {
		signal = syscall.SIGSTOP
	}
	err = syscall.Kill(s.pid, signal)
	for _, pid := range children {
		if kerr := syscall.Kill(pid, signal); !errors.Is(kerr, syscall.ESRCH) { // one may have ended since it was listed
			err = errors.Join(err, kerr)
		}
	}
	return err
}

// Close ends the server at once and removes its files.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.end(), os.RemoveAll(s.dir))
}

// PID is the postmaster's process; 0 while there is none. The backends are its children.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid
}

// Dir is the server's directory: data/, log, and the socket.
func (s *Server) Dir() string { return s.dir }

// Log is the server's log.
func (s *Server) Log() string { return filepath.Join(s.dir, "log") }

// URL names a database for a role, by the socket.
func (s *Server) URL(database, role string) string {
	u := url.URL{Scheme: "postgres", User: url.User(role), Path: "/" + database, RawQuery: url.Values{"host": {s.dir}, "port": {s.port}}.Encode()}
	return u.String()
}

// SuperURL names the database "postgres" for the superuser.
func (s *Server) SuperURL() string { return s.URL("postgres", Superuser) }

// Exec runs a statement as superuser in a database, outside of a transaction.
func (s *Server) Exec(ctx context.Context, database, statement string) error {
	conn, err := pgx.Connect(ctx, s.URL(database, Superuser))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}

// as puts, for root, the user postgres of the distribution's package before a command: PostgreSQL refuses to run as root.
func as(command ...string) []string {
	if os.Getuid() != 0 {
		return command
	}
	if command[0] != "setpriv" {
		command = append([]string{"setpriv"}, command...)
	}
	return append([]string{command[0], "--reuid", "postgres", "--regid", "postgres", "--clear-groups"}, command[1:]...)
}

// own gives a directory to the user that runs the server.
func own(dir string) error {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return fmt.Errorf("PostgreSQL does not run as root, and the user of the distribution's package is not there: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, gid))
	})
}

// childrenOf are the processes whose parent is pid.
func childrenOf(pid int) (out []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if child, err := strconv.Atoi(e.Name()); err == nil {
			if state, parent := status(child); state != "" && parent == pid {
				out = append(out, child)
			}
		}
	}
	return out, nil
}

func zombie(pid int) bool {
	state, _ := status(pid)
	return state == "Z" || state == ""
}

// status reads a process's state and parent; "" when it is gone.
func status(pid int) (state string, parent int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	// pid (name) state ppid ...; the name may hold anything.
	words := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(words) < 2 {
		return "", 0
	}
	parent, err = strconv.Atoi(words[1])
	if err != nil {
		return "", 0
	}
	return words[0], parent
}
