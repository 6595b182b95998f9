// Package tpm is the product's only opener of a TPM. A gateway is its TPM: the endorsement key (EK) says which one it is, the
// attestation key (AK) speaks for it, and the device key signs TLS handshakes and sealing records. No private key ever leaves it.
//
// One goroutine owns the transport. Callers hand it whole operations, never single commands, because a TPM without a resource
// manager has three object slots and two half-done operations would starve each other (TPM 2.0 Part 1, 22.1).
//
// What an interposer on the bus may do: see public areas, delay, refuse. Commands that make or use a key run in a session salted
// to the EK, so their parameters are encrypted and their answers authenticated by whoever holds that EK. The EK itself is
// pinned by the key files after the first enrolment, and proven to the hospital by its certificate or the registry.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// The waits. RSA key generation may take half a minute on a discrete TPM.
const (
	operationTimeout = 2 * time.Minute // for an operation whose caller set no deadline
	commandTimeout   = time.Minute     // for one command on a socket; a device cannot be interrupted
	dialTimeout      = 5 * time.Second
)

// ErrClosed is returned after Close.
var ErrClosed = errors.New("TPM is closed")

// TPM is an open TPM, safe for concurrent use.
type TPM struct {
	path    string
	managed bool // behind the kernel's resource manager, which flushes what a closed file left behind
	open    func() (transport.TPMCloser, error)
	ops     chan *operation
	closing func() // once: stops the owner
	stop    chan struct{}

	// Owned by the run goroutine.
	dev     transport.TPMCloser
	suspect bool // the last operation failed, or a flush of it: something may still be loaded
	ek      *endorsement
	pinned  *[32]byte // hash of the EK that was read first: it is one TPM, so no later reading may give another
}

type operation struct {
	ctx  context.Context
	run  func(*conn) error
	done chan error // capacity 1: an abandoned operation still ends
}

// Open opens the TPM at path: a device such as /dev/tpmrm0, or swtpm:SOCKET. On a transport without resource manager it flushes
// whatever a killed predecessor left loaded. Errors name the mend.
func Open(ctx context.Context, path string) (*TPM, error) {
	t := &TPM{path: path, ops: make(chan *operation), stop: make(chan struct{})}
	t.closing = sync.OnceFunc(func() { close(t.stop) })
	if socket, ok := strings.CutPrefix(path, "swtpm:"); ok {
		t.open = func() (transport.TPMCloser, error) { return openSocket(socket) }
	} else {
		t.managed = strings.HasPrefix(path, "/dev/tpmrm")
		t.open = func() (transport.TPMCloser, error) { return openDevice(path) }
	}
	dev, err := t.open()
	if err != nil {
		return nil, fmt.Errorf("open TPM %s: %w", path, Explain(path, err))
	}
	t.dev = dev
	t.suspect = true // whatever ran before us may have been killed
	go t.own()
	if err := t.do(ctx, "open", func(c *conn) error { _, err := c.property(tpm2.TPMPTManufacturer); return err }); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Close ends the owner once its current operation is over. It does not wait for a hung device, and nor does who waits for an operation.
func (t *TPM) Close() error {
	t.closing()
	return nil
}

// Path is what Open was given.
func (t *TPM) Path() string { return t.path }

func (t *TPM) own() {
	defer func() { t.dev.Close() }()
	for {
		select {
		case <-t.stop:
			return
		case o := <-t.ops:
			o.done <- t.perform(o)
		}
	}
}

// perform runs one operation. An answer so wrong that go-tpm panics over it must cost this operation, not the agent's data path.
func (t *TPM) perform(o *operation) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.suspect, err = true, fmt.Errorf("the TPM's answer makes no sense: %v", p)
		}
	}()
	if err := o.ctx.Err(); err != nil {
		return err
	}
	c := &conn{ctx: o.ctx, tpm: t}
	if err = t.attempt(c, o.run); shows(err, full) { // others on the same transport may have filled it since; they are cleared first
		err = t.attempt(c, o.run)
	}
	return err
}

// attempt runs an operation once, after clearing what a failed one may have left loaded.
func (t *TPM) attempt(c *conn, run func(*conn) error) error {
	if t.suspect {
		if err := t.clear(c); err != nil {
			return fmt.Errorf("clear what is left loaded: %w", err)
		}
	}
	t.suspect = false
	err := run(c)
	t.suspect = t.suspect || err != nil
	if t.suspect && t.ek != nil && t.ek.persistent != 0 {
		t.ek = nil // clearing a TPM evicts the persistent EK: the next operation finds or derives it again, and holds it against the pin
	}
	return err
}

// clear frees every slot. The device is opened anew, because it may be another file by now: of a driver that was loaded again, or of a device
// that went and came back. The kernel's resource manager frees what was ours when the file is closed; elsewhere we are the only user by right
// and flush all, of programs that were killed and of those that should not be there.
func (t *TPM) clear(c *conn) error {
	t.dev.Close()
	dev, err := t.open()
	if err != nil {
		t.dev = broken{err}
		return err
	}
	t.dev = dev
	if t.managed {
		return nil
	}
	return c.flushAll()
}

// do runs one whole operation on the owner goroutine. When ctx ends first the operation is abandoned: it stops at its next command.
func (t *TPM) do(ctx context.Context, what string, run func(*conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	if err := t.hand(ctx, run); err != nil {
		return fmt.Errorf("TPM %s: %s: %w", t.path, what, Explain(t.path, err))
	}
	return nil
}

// hand hands an operation to the owner and waits for it.
func (t *TPM) hand(ctx context.Context, run func(*conn) error) error {
	o := &operation{ctx: ctx, run: run, done: make(chan error, 1)}
	select {
	case <-t.stop: // the owner may be about to take one more
		return ErrClosed
	default:
	}
	select {
	case t.ops <- o:
	case <-t.stop:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("busy with an earlier operation: %w", ctx.Err())
	}
	select {
	case err := <-o.done:
		return err
	case <-t.stop:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("no answer in time: %w", ctx.Err())
	}
}

// value is do for operations with a result, which passes through a channel: an abandoned operation may still be writing its own.
func value[T any](ctx context.Context, t *TPM, what string, run func(*conn) (T, error)) (T, error) {
	results := make(chan T, 1)
	err := t.do(ctx, what, func(c *conn) error {
		v, err := run(c)
		if err == nil {
			results <- v
		}
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return <-results, nil
}
