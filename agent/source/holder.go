package source

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Explain says of a port that cannot be opened what holds it up and what to do.
func Explain(address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		by := "another program"
		if holder := Holder(address); holder != "" {
			by = holder
		}
		return fmt.Errorf("port %s is taken by %s; stop it, or give this source another port: %w", address, by, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is not an address of this machine at present; check 'mllp:' of this source and the network interface: %w", address, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("port %s is reserved for root; choose one above 1023: %w", address, err)
	}
	return fmt.Errorf("%s: %w; choose an address of this machine and a free port", address, err)
}

// Holder names the process that listens on an address's port, such as "process 812 (mirth)". It is "" when nothing listens there, or
// when /proc does not tell: it shows other users' processes to root alone.
func Holder(address string) string {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return ""
	}
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		listening(table, port, inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	// One directory for each process; those that are not ours, or that end meanwhile, cannot be read.
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil {
			continue
		}
		inode, isSocket := strings.CutPrefix(strings.TrimSuffix(link, "]"), "socket:[")
		if !isSocket || !inodes[inode] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "process " + pid
		}
		return "process " + pid + " (" + strings.TrimSpace(string(name)) + ")"
	}
	return ""
}

// listening adds the inodes of the sockets that listen on a port, from one of the kernel's tables (proc(5), /proc/net/tcp).
func listening(table string, port uint64, inodes map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return // without IPv6 there is no tcp6
	}
	defer f.Close()
	const stateListen = "0A"
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != stateListen {
			continue
		}
		_, hex, _ := strings.Cut(fields[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil && n == port {
			inodes[fields[9]] = true
		}
	}
}
