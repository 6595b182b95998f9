// Package listener opens a program's listening sockets, and says who is in the way when a port is taken.
package listener

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Taken is the error of a port that another socket has.
type Taken struct {
	Address string
	Holder  string // "nginx (process 812)", or "" when it could not be found out
	err     error
}

// Error names the address and who holds it.
func (t *Taken) Error() string {
	if t.Holder == "" {
		return fmt.Sprintf("%s is taken by another program (%v; 'ss -ltnp' as root shows which)", t.Address, t.err)
	}
	return fmt.Sprintf("%s is taken by %s", t.Address, t.Holder)
}

// Unwrap gives the system's error.
func (t *Taken) Unwrap() error { return t.err }

// Listen is net.Listen for TCP whose error is a *Taken when somebody has the port.
func Listen(addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &Taken{Address: addr, Holder: Holder(addr), err: syscall.EADDRINUSE}
	}
	return ln, err
}

// Holder finds the process that listens where addr ("host:port") would. It reads /proc, so it is "" on other systems, and for another
// user's process unless root asks. The answer is for people: by the time it is read the socket may be gone.
func Holder(addr string) string {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil || tcp.Port == 0 {
		return ""
	}
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		for _, inode := range listening(f, tcp.AddrPort()) {
			inodes[inode] = true
		}
		f.Close()
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(target, "socket:[") || !inodes[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm") // at most 16 bytes, of the program's own choice
		if err != nil {
			return "process " + pid
		}
		return fmt.Sprintf("%s (process %s)", printable(strings.TrimSpace(string(name))), pid)
	}
	return ""
}

// printable keeps a program's name from saying more to a terminal than a name.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r > 0xff {
			return '?'
		}
		return r
	}, name)
}

// maxSockets bounds how much of a table is read.
const maxSockets = 1 << 20

// listening gives the inodes of the sockets in a table of /proc/net that listen where want would (proc(5), Documentation/networking/proc_net_tcp.rst).
func listening(table io.Reader, want netip.AddrPort) (inodes []string) {
	lines := bufio.NewScanner(table)
	for n := 0; lines.Scan() && n < maxSockets; n++ {
		f := strings.Fields(lines.Text())
		const local, state, inode, listen = 1, 3, 9, "0A"
		if len(f) <= inode || f[state] != listen {
			continue
		}
		at, ok := parseLocal(f[local])
		if !ok || at.Port() != want.Port() {
			continue
		}
		a, b := at.Addr().Unmap(), want.Addr().Unmap()
		if a == b || a.IsUnspecified() || !b.IsValid() || b.IsUnspecified() {
			inodes = append(inodes, f[inode])
		}
	}
	return inodes
}

// parseLocal reads "0100007F:1F90": the address in words of the machine's order, the port in hex.
func parseLocal(text string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(text, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || len(host) != 8 && len(host) != 32 {
		return netip.AddrPort{}, false
	}
	var raw []byte
	for ; host != ""; host = host[8:] {
		word, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, false
		}
		raw = binary.NativeEndian.AppendUint32(raw, uint32(word))
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(n)), ok
}
