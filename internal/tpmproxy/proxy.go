// Package tpmproxy stands between a program and swtpm's socket and does to it what TPMs in the field do: they are slow, busy with their own
// tests, locked, hung or gone, and somebody sits on their bus. swtpm alone answers in a millisecond and never refuses. For tests.
package tpmproxy

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	headerSize = 10   // tag, size, code (TPM 2.0 Part 1, 18)
	maxSize    = 4096 // bytes of a command or an answer; the reference implementation's limit
	answerTime = time.Minute
)

// Fault is what happens to commands. Its parts are done in the order of the fields.
type Fault struct {
	Code   uint32                               // TPM_CC of the commands that it is for; 0: all
	Times  int                                  // for so many of them; 0: for all until Heal
	Delay  time.Duration                        // the command waits
	Hang   bool                                 // it waits until Heal or Away; nobody else is served meanwhile
	Drop   bool                                 // the connection ends without an answer
	Answer uint32                               // TPM_RC that is answered in the TPM's stead; the TPM never sees the command. 0: it does
	Change func(command, answer []byte) []byte  // on the way back: what is answered, unless it is a refusal. nil: as the TPM answers
	Forge  func(command []byte) (forged []byte) // on the way there. nil: as the program sent it
}

// Proxy is one such place on a TPM's way. Its methods are safe for concurrent use.
type Proxy struct {
	Path           string // for tpm.Open: "swtpm:..."
	socket, target string

	bus sync.Mutex // one command at a time, as on a TPM

	mu     sync.Mutex
	faults []*Fault
	counts map[uint32]int
	held   int           // commands in Hang
	healed chan struct{} // closed by Heal
	door   *door         // nil while it is away
}

// door is the socket that the proxy has at present.
type door struct {
	net.Listener
	served sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once it is shut
}

// Start listens on a new socket for the TPM whose socket is target.
func Start(target, socket string) (*Proxy, error) {
	p := &Proxy{Path: "swtpm:" + socket, socket: socket, target: target, counts: map[uint32]int{}, healed: make(chan struct{})}
	return p, p.Back()
}

// Back has the device appear.
func (p *Proxy) Back() error {
	ln, err := net.Listen("unix", p.socket)
	if err != nil {
		return fmt.Errorf("TPM proxy: %w", err)
	}
	d := &door{Listener: ln, conns: map[net.Conn]struct{}{}}
	p.mu.Lock()
	p.door = d
	p.mu.Unlock()
	d.served.Go(func() { p.accept(d) })
	return nil
}

// Away takes the device away: its socket is gone, and so are connections. Faults stay, but nothing hangs any more.
func (p *Proxy) Away() {
	p.mu.Lock()
	d := p.door
	p.door = nil
	p.release()
	p.mu.Unlock()
	if d == nil {
		return
	}
	d.Close() // which removes the socket
	d.mu.Lock()
	for c := range d.conns {
		c.Close()
	}
	d.conns = nil
	d.mu.Unlock()
	d.served.Wait()
}

// Inject adds a fault. The first that fits a command is the one that happens to it.
func (p *Proxy) Inject(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, &f)
}

// Heal takes all faults back and lets go of what hangs: those commands are passed on.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = nil
	p.release()
}

// release lets go of what waits. Under mu.
func (p *Proxy) release() {
	close(p.healed)
	p.healed = make(chan struct{})
}

// Held is how many commands hang.
func (p *Proxy) Held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// Count gives how many commands came since the last call, by TPM_CC, injected ones among them.
func (p *Proxy) Count() map[uint32]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	counts := p.counts
	p.counts = map[uint32]int{}
	return counts
}

func (p *Proxy) accept(d *door) {
	for {
		conn, err := d.Accept()
		if err != nil {
			return
		}
		d.mu.Lock()
		if d.conns == nil {
			d.mu.Unlock()
			conn.Close()
			return
		}
		d.conns[conn] = struct{}{}
		d.mu.Unlock()
		d.served.Go(func() {
			for p.serve(conn) == nil {
			}
			conn.Close()
			d.mu.Lock()
			delete(d.conns, conn)
			d.mu.Unlock()
		})
	}
}

// serve passes one command on.
func (p *Proxy) serve(conn net.Conn) error {
	command, err := read(conn)
	if err != nil {
		return err
	}
	p.bus.Lock()
	defer p.bus.Unlock()
	answer, err := p.answer(command)
	if err != nil {
		return err
	}
	_, err = conn.Write(answer)
	return err
}

func (p *Proxy) answer(command []byte) ([]byte, error) {
	f, healed := p.fault(binary.BigEndian.Uint32(command[6:]))
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-healed:
		}
	}
	if f.Hang {
		p.hold(healed)
	}
	switch {
	case f.Drop:
		return nil, io.ErrUnexpectedEOF
	case f.Answer != 0:
		return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, headerSize}, f.Answer), nil // TPM_ST_NO_SESSIONS, as errors have
	}
	if f.Forge != nil {
		command = f.Forge(command)
	}
	answer, err := p.ask(command)
	if err == nil && f.Change != nil && binary.BigEndian.Uint32(answer[6:]) == 0 {
		answer = f.Change(command, answer)
	}
	return answer, err
}

// fault counts a command and says what happens to it.
func (p *Proxy) fault(code uint32) (Fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[code]++
	if p.door == nil {
		return Fault{Drop: true}, p.healed
	}
	for i, f := range p.faults {
		if f.Code != 0 && f.Code != code {
			continue
		}
		happens := *f
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				p.faults = append(p.faults[:i:i], p.faults[i+1:]...)
			}
		}
		return happens, p.healed
	}
	return Fault{}, p.healed
}

func (p *Proxy) hold(healed <-chan struct{}) {
	p.mu.Lock()
	p.held++
	p.mu.Unlock()
	<-healed
	p.mu.Lock()
	p.held--
	p.mu.Unlock()
}

// ask has the TPM answer. swtpm serves one connection at a time, so none is kept.
func (p *Proxy) ask(command []byte) ([]byte, error) {
	conn, err := net.DialTimeout("unix", p.target, answerTime)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(command); err != nil {
		return nil, err
	}
	return read(conn)
}

// read reads one command or answer.
func read(r io.Reader) ([]byte, error) {
	b := make([]byte, headerSize, maxSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < headerSize || size > maxSize {
		return nil, fmt.Errorf("a command or an answer of %d bytes", size)
	}
	b = b[:size]
	_, err := io.ReadFull(r, b[headerSize:])
	return b, err
}
