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
	"io/fs"
	"strings"
	"sync"
	"syscall"
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
	closed  chan struct{}

	// Owned by the run goroutine.
	dev     transport.TPMCloser
	suspect bool // the last operation failed: something may still be loaded
	ek      *endorsement
	pinned  *[32]byte // hash of the EK that was read first: it is one TPM, so no later reading may give another
}

type operation struct {
	ctx  context.Context
	run  func(*conn) error
	done chan error // capacity 1: an abandoned operation still ends
}

// conn is the transport as one operation sees it. It refuses new commands once the caller's context has ended, except flushes, so
// that an abandoned operation stops early and yet cleans up.
type conn struct {
	ctx context.Context
	tpm *TPM
}

// Send implements transport.TPM.
func (c *conn) Send(command []byte) ([]byte, error) {
	if err := c.ctx.Err(); err != nil && !isFlush(command) {
		return nil, err
	}
	return c.tpm.dev.Send(command)
}

// Open opens the TPM at path: a device such as /dev/tpmrm0, or swtpm:SOCKET. On a transport without resource manager it flushes
// whatever a killed predecessor left loaded. Errors name the mend.
func Open(ctx context.Context, path string) (*TPM, error) {
	t := &TPM{path: path, ops: make(chan *operation), stop: make(chan struct{}), closed: make(chan struct{})}
	t.closing = sync.OnceFunc(func() { close(t.stop) })
	if socket, ok := strings.CutPrefix(path, "swtpm:"); ok {
		t.open = func() (transport.TPMCloser, error) { return openSocket(socket) }
	} else {
		t.managed = strings.HasPrefix(path, "/dev/tpmrm")
		t.open = func() (transport.TPMCloser, error) { return openDevice(path) }
	}
	dev, err := t.open()
	if err != nil {
		return nil, fmt.Errorf("open TPM %s: %w%s", path, err, mend(path, err))
	}
	t.dev = dev
	t.suspect = true // whatever ran before us may have been killed
	go t.own()
	if err := t.do(ctx, "open", func(c *conn) error { _, err := c.property(tpm2.TPMPTManufacturer); return err }); err != nil {
		t.Close()
		return nil, fmt.Errorf("%w%s", err, mend(path, err))
	}
	return t, nil
}

// mend says what an operator can do about a failure to reach a TPM.
func mend(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(path, "swtpm:"):
		return "; start swtpm with --server type=unixio,path=" + strings.TrimPrefix(path, "swtpm:")
	case errors.Is(err, fs.ErrNotExist):
		return "; enable the TPM in the firmware setup or device tree, load its kernel driver, or name another device (ls /dev/tpmrm*)"
	case errors.Is(err, fs.ErrPermission):
		return "; let the agent's user read and write it: add the user to the group tss, or add a udev rule"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "; nothing listens on this socket: start swtpm again"
	case errors.Is(err, tpm2.TPMRCInitialize):
		return "; start swtpm with --flags not-need-init,startup-clear"
	}
	return ""
}

// Close ends the owner once its current operation is over. It does not wait for a hung device.
func (t *TPM) Close() error {
	t.closing()
	return nil
}

// Path is what Open was given.
func (t *TPM) Path() string { return t.path }

func (t *TPM) own() {
	defer close(t.closed)
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

// perform runs one operation, after clearing what a failed one may have left loaded. An answer so wrong that go-tpm panics over it
// must cost this operation, not the agent's data path.
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
	if t.suspect {
		if err := t.clear(c); err != nil {
			return fmt.Errorf("clear what is left loaded: %w", err)
		}
		t.suspect = false
	}
	err = o.run(c)
	if t.suspect = err != nil; t.suspect && t.ek != nil && t.ek.persistent != 0 {
		t.ek = nil // clearing a TPM evicts the persistent EK: the next operation finds or derives it again, and holds it against the pin
	}
	return err
}

// clear frees every slot. The kernel's resource manager does it when the file is closed; elsewhere we are the only user and flush all.
func (t *TPM) clear(c *conn) error {
	if !t.managed {
		return c.flushAll()
	}
	t.dev.Close()
	dev, err := t.open()
	if err != nil {
		t.dev = broken{err}
		return err
	}
	t.dev = dev
	return nil
}

// do runs one whole operation on the owner goroutine. When ctx ends first the operation is abandoned: it stops at its next command.
func (t *TPM) do(ctx context.Context, what string, run func(*conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	o := &operation{ctx: ctx, run: run, done: make(chan error, 1)}
	select {
	case t.ops <- o:
	case <-t.closed:
		return fmt.Errorf("TPM %s: %s: %w", t.path, what, ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("TPM %s: %s: busy with an earlier operation: %w", t.path, what, ctx.Err())
	}
	select {
	case err := <-o.done:
		if err != nil {
			return fmt.Errorf("TPM %s: %s: %w", t.path, what, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("TPM %s: %s: no answer in time: %w", t.path, what, ctx.Err())
	}
}

// value is do for operations with a result, which passes through a channel: an abandoned operation may still be writing its own.
func value[T any](ctx context.Context, t *TPM, what string, run func(*conn) (T, error)) (T, error) {
	results := make(chan T, 1)
	err := t.do(ctx, what, func(c *conn) error {
		v, err := run(c)
		results <- v
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return <-results, nil
}
