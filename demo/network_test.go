package demo

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// echo is a server that gives back what it gets, and the network before it.
func echo(t *testing.T) *network {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	n, err := newNetwork("127.0.0.1:0", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	return n
}

func dial(t *testing.T, n *network) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", n.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("%q, %v; expected %q", got, err, text)
	}
}

// TestCutTearsLines: what is under way arrives in part, then the line is reset; new lines are reset too, until it is mended.
func TestCutTearsLines(t *testing.T) {
	n := echo(t)
	c, idle := dial(t, n), dial(t, n)
	say(t, c, "before")
	say(t, idle, "before")
	mend := n.cut(false)
	if _, err := c.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
		t.Fatal(err)
	}
	for what, line := range map[string]net.Conn{"a line": c, "an idle line": idle} {
		if _, err := io.ReadAll(line); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v; expected a reset", what, err)
		}
	}
	n.mu.Lock()
	torn := n.torn
	n.mu.Unlock()
	if torn == 0 {
		t.Error("nothing was torn in its middle")
	}
	if late, err := net.Dial("tcp", n.address()); err == nil { // or it is reset before Dial has returned
		_ = late.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.ReadAll(late); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a new line while the network is cut: %v", err)
		}
		late.Close()
	}
	if !n.isCut() || n.outages() <= 0 {
		t.Error("it does not know that it is cut")
	}
	mend()
	mend() // once is enough
	say(t, dial(t, n), "after")
	if n.isCut() {
		t.Error("it is still cut")
	}
}

// TestHoleHoldsLines: nothing gets through, and nothing of it is lost.
func TestHoleHoldsLines(t *testing.T) {
	n := echo(t)
	c := dial(t, n)
	say(t, c, "before")
	mend := n.cut(true)
	if _, err := c.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the hole lets through, or breaks: %v", err)
	}
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	mend()
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "held" {
		t.Fatalf("%q %v", got, err)
	}
	// Two that overlap: the outage ends with the later one.
	first, second := n.cut(true), n.cut(false)
	first()
	if !n.isCut() {
		t.Error("the first mend ended both")
	}
	second()
	if n.isCut() {
		t.Error("it is still cut")
	}
}
