package tpmproxy

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// echo is a TPM that answers each command with itself.
func echo(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if command, err := read(conn); err == nil {
				command[9] = 0 // success
				_, _ = conn.Write(command)
			}
			conn.Close()
		}
	}()
	return socket
}

func command(code byte) []byte { return []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 0, code, 'a', 'b'} }

func send(p *Proxy, b []byte) ([]byte, error) {
	conn, err := net.Dial("unix", strings.TrimPrefix(p.Path, "swtpm:"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write(b); err != nil {
		return nil, err
	}
	return read(conn)
}

// A fault happens to the commands that it is for, as often as it says, and to no other; what hangs goes on when it is healed, and fails when the
// device goes away.
func TestFaults(t *testing.T) {
	p, err := Start(echo(t), filepath.Join(t.TempDir(), "p"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Away()
	expect := func(code byte, want string) {
		t.Helper()
		if got, err := send(p, command(code)); err != nil || !strings.HasSuffix(string(got), want) {
			t.Errorf("%q, %v; expected %q", got, err, want)
		}
	}
	expect(7, "ab")
	p.Inject(Fault{Code: 7, Times: 2, Answer: 0x922})
	p.Inject(Fault{Code: 7, Times: 1, Change: func(_, answer []byte) []byte { return append(answer[:10:10], bytes.ToUpper(answer[10:])...) }})
	p.Inject(Fault{Code: 7, Times: 1, Forge: func(command []byte) []byte { command[11] = 'c'; return command }})
	for _, want := range []string{"\x09\x22", "\x09\x22", "AB", "ac", "ab"} {
		expect(8, "ab")
		expect(7, want)
	}
	if n := p.Count(); n[7] != 6 || n[8] != 5 || len(p.Count()) != 0 {
		t.Errorf("%v", n)
	}
	p.Inject(Fault{Drop: true, Times: 1})
	if got, err := send(p, command(7)); err == nil {
		t.Errorf("an answer that was dropped: %q", got)
	}
	for _, free := range []func(){p.Heal, p.Away} {
		p.Inject(Fault{Hang: true})
		done := make(chan []byte)
		go func() { got, _ := send(p, command(7)); done <- got }()
		for p.Held() == 0 {
			select {
			case got := <-done:
				t.Fatalf("it did not hang: %q", got)
			default:
			}
		}
		free()
		<-done
	}
	if _, err := send(p, command(7)); err == nil {
		t.Error("a device that is gone answers")
	}
}
