// Package websocket stands in the place of gorilla/websocket, which the MQTT client imports for a transport that wardlink does not use. It is
// what that client needs to be built, and refuses to connect: 85 KB less in a gateway's program, and nothing in it that parses frames
// which nobody sends.
package websocket

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// BinaryMessage is the type of a binary message (RFC 6455, 5.6).
const BinaryMessage = 2

var errNone = errors.New("MQTT over WebSocket is not part of this program; expected a tls:// address")

// Dialer has the fields that the MQTT client sets; none is used.
type Dialer struct {
	Proxy             func(*http.Request) (*url.URL, error)
	HandshakeTimeout  time.Duration
	EnableCompression bool
	TLSClientConfig   *tls.Config
	Subprotocols      []string
	ReadBufferSize    int
	WriteBufferSize   int
}

// Dial refuses.
func (d *Dialer) Dial(string, http.Header) (*Conn, *http.Response, error) { return nil, nil, errNone }

// Conn never exists: Dial makes none.
type Conn struct{ net.Conn }

// WriteMessage refuses.
func (c *Conn) WriteMessage(int, []byte) error { return errNone }

// NextReader refuses.
func (c *Conn) NextReader() (int, io.Reader, error) { return 0, nil, errNone }
