package ingest

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"
	"unsafe"

	"wardlink/telemetry"
)

// TestIdleBuffersAreReleased: what crypto/tls keeps is let go of between two records, never within one, the peer's certificates with it, and the connection goes on.
func TestIdleBuffersAreReleased(t *testing.T) {
	if !tlsBuffers.known {
		t.Fatal("this Go's crypto/tls keeps its buffers elsewhere: idle connections cost more than MQTT.md says (idle.go)")
	}
	b := newBench(t, Limits{}, "gw-1")
	cert := b.ca.issue("spiffe://"+domain+"/service/ingest", time.Now().Add(time.Hour))
	near, far := net.Pipe()
	client := tls.Client(near, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{b.ca.gateway("gw-1")}})
	server := tls.Server(far, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true, ClientAuth: tls.RequestClientCert})
	defer server.Close()
	record := bytes.Repeat([]byte("x"), 16<<10)
	go func() {
		for range 3 {
			client.Write(record)
		}
		client.Close()
	}()
	kept := func() int { return (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(server), tlsBuffers.rawInput)).Cap() }
	got := make([]byte, 0, 3*len(record))
	read := func(n int) {
		part := make([]byte, n)
		must(io.ReadFull(server, part))(t)
		got = append(got, part...)
	}
	read(100) // the record is not at its end: nothing may be released
	releaseTLS(server)
	if kept() < 1000 || len(server.ConnectionState().PeerCertificates) != 1 {
		t.Fatal("a buffer was released that is still to be read")
	}
	for len(got) < 3*len(record) {
		read(min(len(record)-len(got)%len(record), 5000))
		if len(got)%len(record) == 0 {
			releaseTLS(server)
			if n := kept(); n != 0 {
				t.Errorf("%d bytes are kept at a record's end", n)
			}
		}
	}
	if n := len(server.ConnectionState().PeerCertificates); n != 0 {
		t.Errorf("%d certificates are kept", n)
	}
	if !bytes.Equal(got, bytes.Repeat(record, 3)) {
		t.Error("what was read is not what was sent")
	}
	releaseTLS(near) // no TLS: nothing happens
}

// TestAPokeLosesNothing: a session may be woken at any moment of a packet's arrival.
func TestAPokeLosesNothing(t *testing.T) {
	b, c, p := batches(t)
	b.srv.mu.Lock()
	s := b.srv.sessions["gw-1"]
	b.srv.mu.Unlock()
	poke := func() {
		s.mu.Lock()
		s.warm = true
		s.mu.Unlock()
		s.poke(time.Now().Add(time.Hour))
	}
	packet := publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), 2, p.frame(telemetry.LaneVitals, 0, 40))
	for i := range packet {
		poke()
		c.send(packet[i : i+1])
		poke()
	}
	c.expectPuback(2)
	for i := range uint64(300) { // and as it comes
		go poke()
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), 3, p.frame(telemetry.LaneVitals, 1+i, 40)))
		c.expectPuback(3)
	}
	if n := len(b.journal.rows()); n != 301 {
		t.Errorf("%d batches are journaled", n)
	}
}

// TestPokesKeepTheDeadline: a session that was woken ends when it would have ended.
func TestPokesKeepTheDeadline(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 10)
		b.srv.mu.Lock()
		s := b.srv.sessions["gw-1"]
		b.srv.mu.Unlock()
		if took, why := b.lives(c); took != 15*time.Second || why != endSilent {
			t.Errorf("ended after %s (%s)", took, why)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.warm {
			t.Error("it was silent and kept its buffers")
		}
	})
}
