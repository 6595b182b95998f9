package source

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is a Unix socket that devices open.
type Socket struct {
	Path  string      // absolute; its directory exists and is the agent's
	Mode  fs.FileMode // 0: 0660
	Group int         // that the socket is given to; -1: the agent's own
}

// maxSocketPath is the longest path: sun_path has 108 bytes with the NUL at its end (unix(7)), and the socket is made under a longer name.
const maxSocketPath = 107 - len("/..new/s")

// Check tells what is wrong with the configuration.
func (s Socket) Check() error {
	switch {
	case !filepath.IsAbs(s.Path) || filepath.Clean(s.Path) != s.Path || strings.HasSuffix(s.Path, "/"):
		return fmt.Errorf("%q; expected an absolute path such as /run/wardlink-agent/vitals.sock", s.Path)
	case len(s.Path) > maxSocketPath:
		return fmt.Errorf("the path has %d bytes, and at most %d are possible", len(s.Path), maxSocketPath)
	case s.Mode&^0o777 != 0:
		return fmt.Errorf("mode %o; expected one such as 0660", s.Mode)
	}
	return nil
}

// Open is listen for what is no source.
func (s Socket) Open() (net.Listener, error) { return s.listen() }

// listen makes the socket. It is made in a directory that nobody else can enter and moved to its place once mode and group are right, so
// that at no instant anybody connects who may not. A socket that lies there and has no listener is a dead agent's, and is replaced; anything
// else is left alone. Where others could put theirs in its place, none is made: they would read what devices send, and acknowledge it.
func (s Socket) listen() (net.Listener, error) {
	if err := s.free(); err != nil {
		return nil, err
	}
	dir, name := filepath.Split(s.Path)
	if info, err := os.Stat(dir); err == nil { // where it is not there, Mkdir says so
		owner := info.Sys().(*syscall.Stat_t).Uid
		if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 || owner != 0 && int(owner) != os.Geteuid() {
			return nil, fmt.Errorf("%s: others than the agent's user can write to %s, and could take the socket's place: chown it to that user, and chmod 755 it", s.Path, dir)
		}
	}
	private := filepath.Join(dir, "."+name+".new")
	if err := os.RemoveAll(private); err != nil {
		return nil, err
	}
	if err := os.Mkdir(private, 0o700); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: there is no directory %s; make it, owned by the agent's user (systemd: RuntimeDirectory=)", s.Path, dir)
		}
		return nil, fmt.Errorf("%s: %w; the directory must be the agent's own", s.Path, err)
	}
	defer os.RemoveAll(private)
	at := filepath.Join(private, "s")
	l, err := net.Listen("unix", at)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it knows the former name alone
	mode := s.Mode
	if mode == 0 {
		mode = 0o660
	}
	err = os.Chmod(at, mode)
	if err == nil && s.Group >= 0 {
		if err = os.Chown(at, -1, s.Group); err != nil {
			err = fmt.Errorf("%w; make the agent's user a member of group %d", err, s.Group)
		}
	}
	if err == nil {
		err = os.Rename(at, s.Path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", s.Path, err), l.Close())
	}
	return &socketListener{l, s.Path}, nil
}

// free tells what lies at the path and must stay.
func (s Socket) free() error {
	info, err := os.Lstat(s.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket; remove it, or give this source another path", s.Path)
	}
	c, err := net.DialTimeout("unix", s.Path, time.Second)
	if err == nil {
		_ = c.Close() // nothing was sent
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%s is another program's, which listens there; stop it, or give this source another path", s.Path)
}

// socketListener takes the path away when it is closed.
type socketListener struct {
	net.Listener
	path string
}

func (l *socketListener) Close() error {
	err := l.Listener.Close()
	if err == nil { // the first Close alone: a later agent's socket stays
		err = os.Remove(l.path)
	}
	return err
}

// peerOf is the user and the primary group of the process that opened the connection, as the kernel noted them then.
func peerOf(c net.Conn) (uid, gid uint32, err error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return 0, 0, errors.New("not a Unix socket")
	}
	rc, err := uc.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := rc.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, 0, err
	}
	if credErr != nil {
		return 0, 0, credErr
	}
	return cred.Uid, cred.Gid, nil
}
