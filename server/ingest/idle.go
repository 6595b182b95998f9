package ingest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"sync/atomic"
	"time"
	"unsafe"
)

// A hospital's gateways are silent most of the time, and a connection keeps what its busiest moment needed: crypto/tls a buffer as large as the
// largest record, up to 33 KB, and what is left of the handshake, the peer's parsed certificates most of all. So a session that has been silent for a while is woken once, by a read
// deadline that is past, and lets go of its buffers; then it sleeps on, with the deadline that it had.

// idleAfter is how long a session is silent before its buffers are released.
const idleAfter = 2 * time.Second

// rest says what the reader is at, for those who would wake it: only between two packets may it be woken, since a deadline that
// strikes within one would end the session.
type rest struct{ atomic.Uint32 }

const (
	restBusy    = 0 // within a packet
	restWaiting = 1 // for the first bytes of one
	restPoked   = 2 // woken up to release its buffers
)

// poke wakes a session that has been silent for idleAfter and holds buffers.
func (c *session) poke(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.warm || c.end != "" || now.Sub(c.armed) < idleAfter || !c.rest.CompareAndSwap(restWaiting, restPoked) {
		return
	}
	c.warm = false
	_ = c.conn.SetReadDeadline(past)
}

// header waits for a packet and reads its fixed header.
func (c *session) header() (header, error) {
	for have := 0; have < 2; {
		n, err := io.ReadFull(c.conn, c.scratch[have:2])
		if have += n; err == nil {
			break
		}
		if c.rest.Load() != restPoked || !errors.Is(err, os.ErrDeadlineExceeded) || !c.relax(restWaiting, have == 0) {
			return header{}, err
		}
	}
	if !c.rest.CompareAndSwap(restWaiting, restBusy) && !c.relax(restBusy, false) { // it was poked as the packet came
		return header{}, os.ErrDeadlineExceeded
	}
	return readHeader(c.conn, &c.scratch, 2)
}

// relax takes up the deadline that was there before the session was poked, and releases its buffers. false: it is ending.
func (c *session) relax(to uint32, release bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != "" {
		return false
	}
	if release {
		releaseTLS(c.conn)
	}
	c.rest.Store(to)
	return c.conn.SetReadDeadline(c.armed.Add(c.silence)) == nil
}

// tlsBuffers is where a *tls.Conn keeps what has been read: records as they came (rawInput), what of the last one was not asked for yet
// (input), handshake messages (hand), and whom it met (peerCertificates, 5 KB; prove has read them). crypto/tls has no call that lets go of them. Where a later Go names them otherwise nothing is released; a test says so.
var tlsBuffers = func() (at struct {
	rawInput, input, hand, peer uintptr
	known                       bool
}) {
	conn := reflect.TypeFor[tls.Conn]()
	raw, ok1 := conn.FieldByName("rawInput")
	in, ok2 := conn.FieldByName("input")
	hand, ok3 := conn.FieldByName("hand")
	peer, ok4 := conn.FieldByName("peerCertificates")
	at.known = ok1 && ok2 && ok3 && ok4 && peer.Type == reflect.TypeFor[[]*x509.Certificate]() && raw.Type == reflect.TypeFor[bytes.Buffer]() && hand.Type == raw.Type && in.Type == reflect.TypeFor[bytes.Reader]()
	if at.known {
		at.rawInput, at.input, at.hand, at.peer = raw.Offset, in.Offset, hand.Offset, peer.Offset
	}
	return at
}()

// releaseTLS lets go of a TLS connection's empty buffers. Only the goroutine that reads from the connection may call it, between two
// reads: nobody else touches what is read.
func releaseTLS(conn net.Conn) {
	c, ok := conn.(*tls.Conn)
	if !ok || !tlsBuffers.known {
		return
	}
	input := (*bytes.Reader)(unsafe.Add(unsafe.Pointer(c), tlsBuffers.input))
	if input.Len() > 0 {
		return // part of a record is still to be read, and its memory is rawInput's
	}
	input.Reset(nil)
	*(*[]*x509.Certificate)(unsafe.Add(unsafe.Pointer(c), tlsBuffers.peer)) = nil
	for _, at := range []uintptr{tlsBuffers.rawInput, tlsBuffers.hand} {
		if b := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(c), at)); b.Len() == 0 {
			*b = bytes.Buffer{}
		}
	}
}
