// Package balancer runs HAProxy of the distribution's packages before ingest nodes, for the demonstration and for tests. Its configuration is
// the one that OPERATING.md shows.
package balancer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wardlink/internal/child"
)

// Node is one ingest node behind the balancer.
type Node struct{ Name, Gateways, Health string }

// Address is where the balancer's connections to the nodes come from, and what these name in 'balancers': its PROXY headers say from where the gateways
// come. On one machine it must not be an address of theirs.
const Address = "127.0.0.2"

// Start runs a TCP balancer at addr with its files in dir. A node that does not answer its check is left out within a second, and its
// connections are ended: gateways come back to the others.
func Start(dir, addr string, nodes []Node) (*child.Process, error) {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		program = "/usr/sbin/haproxy"
		if _, serr := os.Stat(program); serr != nil {
			return nil, errors.Join(errors.New("HAProxy is not there; install the distribution's package haproxy"), err)
		}
	}
	path := filepath.Join(dir, "haproxy.cfg")
	text, err := config(addr, nodes)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return child.Start("balancer", filepath.Join(dir, "haproxy.log"), program, "-db", "-f", path)
}

func config(addr string, nodes []Node) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, `defaults
    mode tcp
    timeout connect 2s
    timeout client 10m            # longer than a session's keep-alive, 5 minutes at most
    timeout server 10m
    timeout check 2s

frontend gateways
    bind %s
    default_backend ingest

backend ingest
    balance leastconn
    option httpchk GET /readyz
    default-server inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions
`, addr)
	for _, n := range nodes {
		_, port, err := net.SplitHostPort(n.Health)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "    server %s %s check port %s send-proxy-v2 source %s\n", n.Name, n.Gateways, port, Address)
	}
	return b.String(), nil
}
