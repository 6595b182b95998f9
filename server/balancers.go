package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Balancers are the addresses of TCP balancers before the gateways' port, 10.1.0.5 or 10.1.0.0/28, which say by the PROXY protocol from where a
// connection comes. From there each connection must begin with its header, and from elsewhere none is read: nobody names an address but
// the balancer. Without it all gateways behind one share its address, in the log and for what is bounded by address.
type Balancers []string

const maxBalancers = 16

// prefixes are the addresses as they are compared.
func (b Balancers) prefixes() (out []netip.Prefix, err error) {
	if len(b) > maxBalancers {
		return nil, fmt.Errorf("balancers: %d; at most %d", len(b), maxBalancers)
	}
	for i, text := range b {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			ip, aerr := netip.ParseAddr(text)
			if aerr != nil || ip.Zone() != "" {
				return nil, fmt.Errorf("balancers[%d]: %q; expected an address or a network such as 10.1.0.5 or 10.1.0.0/28", i, text)
			}
			p = netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen())
		}
		if p.Addr().Is4In6() { // a connection's address is compared unmapped, so that it would match none
			return nil, fmt.Errorf("balancers[%d]: %q; write an IPv4 network as IPv4, such as 10.1.0.0/28", i, text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

const (
	// proxyTime is how long a balancer may take for its header, which it sends before anything of the gateway's.
	proxyTime = 5 * time.Second
	// maxProxy bounds a header of version 2, and what is skipped of its TLVs; HAProxy's has 28 bytes, or some hundred with all that it can add.
	maxProxy = 1 << 10
	// maxProxyLine is version 1's own bound, without the end of the line.
	maxProxyLine = 105
)

var (
	proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n")
	errProxy       = errors.New("no PROXY header")
)

// readProxy reads a header of the PROXY protocol, version 1 or 2, and not a byte more. The zero address: the balancer speaks for itself.
func readProxy(r io.Reader) (peer netip.AddrPort, err error) {
	head := make([]byte, len(proxySignature))
	if _, err := io.ReadFull(r, head); err != nil {
		return peer, errProxy
	}
	switch {
	case bytes.Equal(head, proxySignature):
		return readProxy2(r)
	case bytes.HasPrefix(head, []byte("PROXY ")):
		return readProxy1(r, head)
	}
	return peer, errProxy
}

func readProxy1(r io.Reader, line []byte) (peer netip.AddrPort, err error) {
	var b [1]byte
	for !bytes.HasSuffix(line, []byte("\r\n")) {
		if len(line) >= maxProxyLine+2 {
			return peer, errProxy
		}
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return peer, errProxy
		}
		line = append(line, b[0])
	}
	word := strings.Split(string(line[:len(line)-2]), " ")
	if word[1] == "UNKNOWN" {
		return peer, nil
	}
	if len(word) != 6 || word[1] != "TCP4" && word[1] != "TCP6" {
		return peer, errProxy
	}
	peer, err = netip.ParseAddrPort(net.JoinHostPort(word[2], word[4]))
	if err != nil || peer.Addr().Zone() != "" || peer.Addr().Is4() != (word[1] == "TCP4") {
		return netip.AddrPort{}, errProxy
	}
	return peer, nil
}

func readProxy2(r io.Reader) (peer netip.AddrPort, err error) {
	var fixed [4]byte // version and command, family and protocol, length of the rest
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return peer, errProxy
	}
	n := int(binary.BigEndian.Uint16(fixed[2:]))
	if fixed[0]>>4 != 2 || fixed[0]&15 > 1 || n > maxProxy {
		return peer, errProxy
	}
	rest := make([]byte, n)
	if _, err := io.ReadFull(r, rest); err != nil {
		return peer, errProxy
	}
	if fixed[0]&15 == 0 { // LOCAL
		return peer, nil
	}
	size := map[byte]int{0x11: 4, 0x21: 16}[fixed[1]] // TCP over IPv4, over IPv6
	if size == 0 || n < 2*size+4 {
		return peer, errProxy
	}
	ip, _ := netip.AddrFromSlice(rest[:size])
	return netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(rest[2*size:])), nil
}

// proxiedConn comes from where its balancer says.
type proxiedConn struct {
	net.Conn
	peer net.Addr
}

func (c proxiedConn) RemoteAddr() net.Addr { return c.peer }

// CloseWrite is spokenConn's.
func (c proxiedConn) CloseWrite() error { return closeWrite(c.Conn) }

// behind says whether a connection comes from a balancer.
func (d *doorway) behind(conn net.Conn) bool {
	at := address(conn.RemoteAddr())
	for _, p := range d.balancers {
		if p.Contains(at) {
			return true
		}
	}
	return false
}

// proxied gives a balancer's connection as the peer's that it names.
func proxied(conn net.Conn) (net.Conn, error) {
	if err := conn.SetReadDeadline(time.Now().Add(proxyTime)); err != nil {
		return nil, err
	}
	peer, err := readProxy(conn)
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil || !peer.IsValid() {
		return conn, err
	}
	return proxiedConn{conn, net.TCPAddrFromAddrPort(peer)}, nil
}
