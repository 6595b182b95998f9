package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"wardlink/internal/recording"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
	"wardlink/server/keys"
)

// tap stands between a gateway and its server, as the server to the one and as the gateway to the other: the hospital's own keys let it.
type tap struct {
	ln       net.Listener
	server   string
	own      tls.Certificate
	keys     *keys.Keys
	mu       sync.Mutex
	closed   bool
	sessions []*recording.Session
	http     []recording.Exchange
	device   []byte
}

func newTap(dir, server string) (*tap, error) {
	k, err := keys.Open(dir)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := ca.NewCertificate(k.Issuing, k.IssuingKey, ca.Template{
		ID: spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Service, Name: "ingest"}, Public: key.Public(), Life: time.Hour,
		DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, time.Now())
	if err != nil {
		return nil, err
	}
	t := &tap{server: server, keys: k, own: tls.Certificate{Certificate: [][]byte{cert.Raw, k.Issuing.Raw}, PrivateKey: key}}
	if t.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	go t.run()
	return t, nil
}

func (t *tap) addr() string { return t.ln.Addr().String() }

// cut ends what the gateway can reach.
func (t *tap) cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	_ = t.ln.Close()
}

func (t *tap) story() (sessions []recording.Session, exchanges []recording.Exchange, device []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sessions {
		sessions = append(sessions, *s)
	}
	return sessions, t.http, t.device
}

func (t *tap) run() {
	for {
		conn, err := t.ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			secured := tls.Server(conn, &tls.Config{
				MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{t.own}, NextProtos: []string{"mqtt", "http/1.1"},
				ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
			})
			if secured.Handshake() != nil {
				return
			}
			if secured.ConnectionState().NegotiatedProtocol == "mqtt" {
				t.mqtt(secured)
			} else {
				t.exchanges(secured)
			}
		}()
	}
}

// exchanges passes HTTP requests on and notes them.
func (t *tap) exchanges(conn net.Conn) {
	client := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}, DisableCompression: true} // the server is this program's own child
	defer client.CloseIdleConnections()
	in := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		x := recording.Exchange{Method: r.Method, Path: r.URL.Path, Header: r.Header.Clone(), Body: body}
		r.URL.Scheme, r.URL.Host, r.Body, r.RequestURI = "https", t.server, io.NopCloser(bytes.NewReader(body)), ""
		answer, err := client.RoundTrip(r) // with the Host that the gateway asked: ACME's links name it
		if err != nil {
			return
		}
		x.Answer, err = io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil {
			return
		}
		x.Status = answer.StatusCode
		t.mu.Lock()
		if !t.closed {
			t.http = append(t.http, x)
		}
		t.mu.Unlock()
		answer.Body, answer.ContentLength, answer.TransferEncoding = io.NopCloser(bytes.NewReader(x.Answer)), int64(len(x.Answer)), nil
		if answer.Write(conn) != nil || r.Close {
			return
		}
	}
}

// mqtt passes packets on in both directions and notes them.
func (t *tap) mqtt(conn *tls.Conn) {
	peer := conn.ConnectionState().PeerCertificates
	if len(peer) == 0 {
		return
	}
	id, err := spiffe.FromCertificate(peer[0])
	if err != nil {
		return
	}
	cert, err := t.impersonate(id)
	if err != nil {
		return
	}
	server, err := tls.Dial("tcp", t.server, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"mqtt"}, Certificates: []tls.Certificate{cert}})
	if err != nil {
		return
	}
	defer server.Close()
	s := &recording.Session{}
	t.mu.Lock()
	t.device = peer[0].RawSubjectPublicKeyInfo
	if !t.closed {
		t.sessions = append(t.sessions, s)
	}
	t.mu.Unlock()
	done := make(chan struct{}, 2)
	pass := func(from, to net.Conn, into *[][]byte) {
		defer func() { done <- struct{}{} }()
		in := bufio.NewReader(from)
		for {
			packet, err := readPacket(in)
			if err != nil {
				return
			}
			t.mu.Lock()
			if t.closed {
				t.mu.Unlock()
				return
			}
			*into = append(*into, packet)
			t.mu.Unlock()
			if _, err := to.Write(packet); err != nil {
				return
			}
		}
	}
	go pass(conn, server, &s.Up)
	go pass(server, conn, &s.Down)
	<-done
}

// impersonate makes a certificate of the gateway's id for a key of this program.
func (t *tap) impersonate(id spiffe.ID) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{uri},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}, t.keys.Issuing, key.Public(), t.keys.IssuingKey)
	return tls.Certificate{Certificate: [][]byte{der, t.keys.Issuing.Raw}, PrivateKey: key}, err
}

func readPacket(in *bufio.Reader) ([]byte, error) {
	head, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	packet, size := []byte{head}, 0
	for shift := 0; ; shift += 7 {
		b, err := in.ReadByte()
		if err != nil {
			return nil, err
		}
		if shift > 21 {
			return nil, errors.New("length of more than four bytes")
		}
		packet = append(packet, b)
		if size |= int(b&0x7f) << shift; b < 0x80 {
			break
		}
	}
	if size > 1<<20 {
		return nil, fmt.Errorf("packet of %d bytes", size)
	}
	at := len(packet)
	packet = append(packet, make([]byte, size)...)
	_, err = io.ReadFull(in, packet[at:])
	return packet, err
}
