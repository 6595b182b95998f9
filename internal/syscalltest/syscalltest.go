// Package syscalltest runs a real program and decides about each system call by which it changes a file: it passes, it fails with an
// error of the test's choice, or the program is killed at its entry. It is what strace's injection is not: strace counts calls for each
// thread by itself, and a Go program's calls wander between threads, so that "the seventh fdatasync" cannot be named there. Here one
// goroutine sees the calls of all threads one after the other, with the file that each is about.
//
// How: the program is started by the test's own binary (Main), which installs a seccomp filter that hands these calls to a listener
// (seccomp_unotify(2), Linux 5.5 or later) and then becomes the program. No privilege is needed.
package syscalltest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"wardlink/internal/child"
)

// Call is one call at its entry. It is valid until the function that it is given to returns.
type Call struct {
	Name  string // as in the manual's section 2
	Path  string // absolute; of the file that it changes, or that a new name is given to. A socket's begins with "socket:"
	From  string // the former name, of a renameat
	Size  int    // bytes of a write
	At    int64  // offset of a pwrite64, length of a ftruncate, end of a fallocate
	Flags int    // of an openat

	pid  int
	data uint64
}

// Data is what a write is about to write.
func (c *Call) Data() ([]byte, error) {
	buf := make([]byte, c.Size)
	return buf, readMemory(c.pid, c.data, buf)
}

// Verdict is what becomes of a call: 0 lets it pass, a positive number is the errno that it fails with, unperformed.
type Verdict int

const (
	Pass Verdict = 0
	Kill Verdict = -1 // the whole program, by SIGKILL, before the call
)

// Watch says what to do with the calls. Its functions are called by one goroutine.
type Watch struct {
	Decide func(*Call) Verdict // required
	// Flushed is called after a fsync or fdatasync that passed. When it is set these are performed one at a time, so that the order of
	// calls and ends of flushes is exactly that of the functions' calls; nil: they are performed as the program does.
	Flushed func(*Call, error)
}

// names are the calls that change files or their names, as a Go program makes them on any architecture.
var names = map[int]string{
	unix.SYS_OPENAT: "openat", unix.SYS_WRITE: "write", unix.SYS_WRITEV: "writev", unix.SYS_PWRITE64: "pwrite64", unix.SYS_FSYNC: "fsync",
	unix.SYS_FDATASYNC: "fdatasync", unix.SYS_FALLOCATE: "fallocate", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_RENAMEAT: "renameat",
	unix.SYS_RENAMEAT2: "renameat2", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_FCHMOD: "fchmod",
	unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FLOCK: "flock", unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_MSYNC: "msync",
}

const launch = "syscalltest-launch"

// Main must be called first in TestMain of a package that uses Start.
func Main() {
	if len(os.Args) > 3 && os.Args[1] == launch {
		err := become(os.Args[2], os.Args[3:])
		fmt.Fprintln(os.Stderr, "syscalltest:", err)
		os.Exit(126)
	}
}

// become installs the filter, hands its listener to the test and becomes the program.
func become(socket string, argv []string) error {
	runtime.LockOSThread() // the filter is this thread's, and exec's
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(s, &unix.SockaddrUnix{Name: socket})
	}
	if err != nil {
		return err
	}
	filter := program()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	listener, errno := setFilter(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &prog)
	if errno == unix.EINVAL { // before Linux 5.19: a signal makes the call be seen twice, which answer knows
		listener, errno = setFilter(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog)
	}
	if errno != 0 {
		return fmt.Errorf("seccomp filter: %w; expected Linux 5.5 or later", errno)
	}
	unix.CloseOnExec(listener)
	if err := unix.Sendmsg(s, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
		return err
	}
	return unix.Exec(argv[0], argv, os.Environ())
}

func setFilter(flags int, prog *unix.SockFprog) (int, unix.Errno) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(prog)))
	return int(fd), errno
}

// program is the filter: these calls go to the listener, opens only where they may write, all others run.
func program() []unix.SockFilter {
	const openFlags = 16 + 2*8 // of seccomp_data: the low half of the third argument
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	// An open for reading is a fault of another kind.
	p := []unix.SockFilter{load(0),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_OPENAT, Jf: 4},
		load(openFlags),
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT, Jt: 1},
		ret(unix.SECCOMP_RET_ALLOW), ret(unix.SECCOMP_RET_USER_NOTIF)}
	for nr := range names {
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(nr), Jf: 1}, ret(unix.SECCOMP_RET_USER_NOTIF))
	}
	return append(p, ret(unix.SECCOMP_RET_ALLOW))
}

// Start runs a program under w, its output appended to logFile. All its calls are decided about from its first instruction on.
func Start(t testing.TB, w Watch, logFile, program string, args ...string) *child.Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "wls")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	ln, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ln)
	if err := errors.Join(unix.Bind(ln, &unix.SockaddrUnix{Name: socket}), unix.Listen(ln, 1),
		unix.SetsockoptTimeval(ln, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})); err != nil {
		t.Fatal(err)
	}
	p, err := child.Start(filepath.Base(program), logFile, self, append([]string{launch, socket, program}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := receive(ln)
	if err != nil {
		p.Kill()
		text, _ := os.ReadFile(logFile)
		t.Fatalf("the program under watch did not come up: %v\n%s", err, text)
	}
	s := &supervisor{Watch: w, t: t, listener: listener, process: p}
	var done sync.WaitGroup
	done.Go(s.run)
	t.Cleanup(func() { p.Kill(); done.Wait() })
	return p
}

func receive(ln int) (int, error) {
	conn, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
	for err == unix.EINTR {
		conn, _, err = unix.Accept4(ln, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		return 0, err
	}
	defer unix.Close(conn)
	var byteOf [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, byteOf[:], oob, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		_, n, _, _, err = unix.Recvmsg(conn, byteOf[:], oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("%d control messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	return fds[0], nil
}

// request and response are seccomp_notif and seccomp_notif_resp of seccomp_unotify(2).
type request struct {
	id    uint64
	pid   uint32 // of the thread
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type response struct {
	id    uint64
	val   int64
	errno int32 // negative
	flags uint32
}

type supervisor struct {
	Watch
	t        testing.TB
	listener int
	process  *child.Process
}

func (s *supervisor) run() {
	defer unix.Close(s.listener)
	for {
		fds := []unix.PollFd{{Fd: int32(s.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			s.t.Errorf("watch: %v", err)
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents != 0 {
				return // nobody is left who could call
			}
			continue
		}
		var r request
		if errno := ioctl(s.listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&r)); errno == unix.ENOENT || errno == unix.EINTR {
			continue // it was killed meanwhile
		} else if errno != 0 {
			s.t.Errorf("watch: %v", errno)
			return
		}
		s.answer(&r)
	}
}

func ioctl(fd int, op uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), op, uintptr(arg))
	return errno
}

func (s *supervisor) answer(r *request) {
	resp := response{id: r.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if c, ok := describe(r); ok {
		switch v := s.Decide(c); {
		case v == Kill:
			s.process.Kill()
			return
		case v != Pass:
			resp.flags, resp.errno = 0, -int32(v)
		case s.Flushed != nil && (c.Name == "fsync" || c.Name == "fdatasync"):
			err := flush(s.process.PID(), int(int32(r.args[0])), c.Name)
			var errno unix.Errno
			if errors.As(err, &errno) {
				resp.errno = -int32(errno)
			}
			resp.flags = 0
			s.Flushed(c, err)
		}
	}
	if errno := ioctl(s.listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&resp)); errno != 0 && errno != unix.ENOENT {
		s.t.Errorf("watch: answer: %v", errno)
	}
}

// flush performs a call on the program's own open file.
func flush(pid, fd int, name string) error {
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(p)
	f, err := unix.PidfdGetfd(p, fd, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	if name == "fsync" {
		return unix.Fsync(f)
	}
	return unix.Fdatasync(f)
}

// describe tells what a call is about; false for one that is about no file.
func describe(r *request) (*Call, bool) {
	c := &Call{Name: names[int(r.nr)], pid: int(r.pid)}
	switch c.Name {
	case "openat", "unlinkat", "mkdirat", "fchmodat":
		c.Path = pathAt(c.pid, r.args[0], r.args[1])
	case "renameat", "renameat2", "linkat":
		c.From, c.Path = pathAt(c.pid, r.args[0], r.args[1]), pathAt(c.pid, r.args[2], r.args[3])
	case "symlinkat":
		c.Path = pathAt(c.pid, r.args[1], r.args[2])
	case "msync":
		return nil, false // no file of ours is mapped for writing
	default:
		c.Path = link(c.pid, strconv.Itoa(int(int32(r.args[0]))))
	}
	switch c.Name {
	case "openat":
		c.Flags = int(r.args[2])
	case "write", "pwrite64":
		c.data, c.Size, c.At = r.args[1], int(r.args[2]), int64(r.args[3])
	case "ftruncate":
		c.At = int64(r.args[1])
	case "fallocate":
		c.At = int64(r.args[2] + r.args[3])
	}
	return c, strings.HasPrefix(c.Path, "/") || strings.HasPrefix(c.Path, "socket:")
}

func link(pid int, fd string) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(path, " (deleted)")
}

func pathAt(pid int, dir, name uint64) string {
	var path []byte
	for len(path) < unix.PathMax {
		// To the end of the page: the next one may not be mapped.
		buf := make([]byte, os.Getpagesize()-int(name)%os.Getpagesize())
		if readMemory(pid, name, buf) != nil {
			return ""
		}
		if s, _, ok := strings.Cut(string(buf), "\x00"); ok {
			path = append(path, s...)
			break
		}
		path, name = append(path, buf...), name+uint64(len(buf))
	}
	if filepath.IsAbs(string(path)) {
		return filepath.Clean(string(path))
	}
	base := link(pid, strconv.Itoa(int(int32(dir))))
	if int32(dir) == unix.AT_FDCWD {
		base, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	}
	return filepath.Join(base, string(path))
}

func readMemory(pid int, at uint64, buf []byte) error {
	if len(buf) == 0 {
		return nil
	}
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(len(buf))
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(buf)}}, 0)
	if err == nil && n != len(buf) {
		err = syscall.EFAULT
	}
	return err
}
