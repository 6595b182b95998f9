package source

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

// What devices do wrong, one connection each: what is answered, and whether the connection goes on. "" is the connection's end. A whole
// message after it is taken in where it goes on.
func TestBrokenSenders(t *testing.T) {
	const unframed, headless = "MSA|AR||message is not framed by MLLP", "MSA|AR||message has no usable MSH segment"
	whole := string(frame(oru("1")))
	other := strings.NewReplacer("|", "#", "^", "@", "~", "!", "&", "$").Replace(string(oru("1")))
	for name, c := range map[string]struct {
		send string
		want []string
	}{
		"no start block":                 {string(oru("1")) + "\x1c\r", []string{"MSA|AR|1|message is not framed by MLLP"}},
		"garbage between frames":         {whole + "garbage" + whole, []string{"MSA|AA|1", unframed, "MSA|AA|1"}},
		"blanks between frames":          {"\r\n" + whole + " \x00\r\n" + whole, []string{"MSA|AA|1", "MSA|AA|1"}},
		"missing end block":              {"\v" + string(oru("1")) + whole, []string{"MSA|AR|1|message is not framed by MLLP", "MSA|AA|1"}},
		"end block without CR":           {"\v" + string(oru("1")) + "\x1c" + whole, []string{"MSA|AR|1|message is not framed by MLLP", "MSA|AA|1"}},
		"0x0b within":                    {"\v" + string(oru("1")) + "NTE|a\vb\x1c\r", []string{"MSA|AR|1|message is not framed by MLLP", headless}},
		"0x1c within":                    {"\v" + string(oru("1")) + "NTE|a\x1cb\x1c\r", []string{"MSA|AR|1|message is not framed by MLLP"}},
		"empty frame":                    {"\v\x1c\r", []string{headless}},
		"other separators":               {"\v" + other + "\x1c\r", []string{"MSA#AA#1"}},
		"line feeds for segments":        {"\v" + strings.ReplaceAll(string(oru("1")), "\r", "\n") + "\x1c\r", []string{"MSA|AA|1"}},
		"bytes of another charset":       {"\v" + strings.Replace(string(oru("1")), "CANARY-1", "M\xfcller", 1) + "\x1c\r", []string{"MSA|AA|1"}},
		"a charset that is none":         {"\v" + strings.Replace(string(oru("1")), "|2.6\r", "|2.6||||||8859/99\r", 1) + "\x1c\r", []string{"MSA|AA|1"}},
		"UTF-16":                         {"\v\xff\xfeM\x00S\x00H\x00|\x00\x1c\r", []string{headless}},
		"HTTP":                           {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", []string{unframed}},
		"TLS to a port without":          {"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b", []string{unframed}},
		"faults in a row end it":         {"x\v\vy\v", []string{unframed, unframed, unframed, ""}},
		"two messages, the second whole": {"\v" + string(oru("1"))[:40] + whole, []string{"MSA|AR|1|message is not framed by MLLP", "MSA|AA|1"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := start(t, Config{Accept: take})
			d := dial(t, s)
			d.send([]byte(c.send))
			for _, want := range c.want {
				if want == "" {
					d.closed()
					return
				}
				if a := d.answer(); a != want && !(strings.HasPrefix(want, "MSA|AR|1|") && a == strings.Replace(want, "AR|1|", "AR||", 1)) {
					t.Fatalf("%q, want %q", a, want)
				}
			}
			d.send(frame(oru("2")))
			if a := d.answer(); a != "MSA|AA|2" {
				t.Errorf("after it: %q", a)
			}
		})
	}
}

// Half a frame and then the connection's end is no message; nothing of it stays behind.
func TestHalfFramesThenClose(t *testing.T) {
	s, _ := start(t, Config{Accept: func(context.Context, Delivery) error { t.Error("half a message is accepted"); return nil }})
	whole := frame(oru("1"))
	for n := range len(whole) {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(whole[:n])
		c.Close()
	}
	eventually(t, "connections are left", func() bool { return s.Stats().Connections == 0 })
	if st := s.Stats(); st.Received != 0 || st.Acknowledged != 0 {
		t.Errorf("%+v", st)
	}
}

// A device that sends and never reads has its connection closed once its acknowledgements have no room: it cannot hold memory.
func TestNeverReads(t *testing.T) {
	s, _ := start(t, Config{Accept: take, WriteTimeout: 50 * time.Millisecond})
	d := dial(t, s)
	if err := d.Conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil { // with much less, the kernel drops what acknowledges its own bytes, and backs off
		t.Fatal(err)
	}
	eventually(t, "it has no place", func() bool { return s.Stats().Connections == 1 })
	// It sends until the far side has closed the connection, of which a window that is shut may hide the news for some time.
	go func() {
		many := bytes.Repeat(frame(oru("1")), 64)
		for err := error(nil); err == nil; {
			_, err = d.Write(many)
		}
	}()
	eventually(t, "its place is not free", func() bool { return s.Stats().Connections == 0 })
}

// A byte at a time is served while the whole message is in time; the deadline is the message's, not the byte's.
func TestByteAtATime(t *testing.T) {
	s, _ := start(t, Config{Accept: func(context.Context, Delivery) error { t.Error("accepted"); return nil }, FrameTimeout: 60 * time.Millisecond})
	d := dial(t, s)
	sent := 0
	for _, b := range frame(oru("1")) {
		if _, err := d.Write([]byte{b}); err != nil {
			break
		}
		sent++
		wait(context.Background(), 2*time.Millisecond)
	}
	if sent == len(frame(oru("1"))) {
		t.Error("a message that took longer than FrameTimeout was read to its end")
	}
	eventually(t, "its place is not free", func() bool { return s.Stats().Connections == 0 })
}
