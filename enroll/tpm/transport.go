package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

const (
	headerSize  = 10   // tag, size, code (TPM 2.0 Part 1, 18)
	maxResponse = 4096 // larger than MAX_RESPONSE_SIZE of the reference implementation
)

// The waits for a TPM that is busy with its own tests or with others' work and says so (TPM 2.0 Part 1, 18.3.3): the tests of a slow one take
// seconds.
const (
	firstPause   = time.Millisecond
	longestPause = 250 * time.Millisecond
	longestBusy  = 30 * time.Second
)

// conn is the transport as one operation sees it. It refuses new commands once the caller's context has ended, except flushes, so
// that an abandoned operation stops early and yet cleans up.
type conn struct {
	ctx context.Context
	tpm *TPM
}

// Send implements transport.TPM. A TPM that is busy has not begun with the command, and no session's nonce has moved: the same bytes are sent
// again, until it is not, or longestBusy is over, or the caller has no time for another pause: who asked shall hear that it is busy, not nothing.
func (c *conn) Send(command []byte) ([]byte, error) {
	began := time.Now()
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		if err := c.ctx.Err(); err != nil && !isFlush(command) {
			return nil, err
		}
		answer, err := c.tpm.dev.Send(command)
		if err != nil {
			return nil, err
		}
		if code := answerCode(answer); !shows(code, busy) {
			return answer, nil
		} else if end, ok := c.ctx.Deadline(); time.Since(began) >= longestBusy || ok && time.Until(end) < 2*pause || !c.pause(pause) {
			return nil, code
		}
	}
}

// busy are the answers of a TPM that has not begun with a command.
var busy = []error{tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded}

// answerCode is the response code of an answer. go-tpm's transport of a device gives no answer at all, and no error, when a TPM was busy for longer
// than that has patience.
func answerCode(answer []byte) tpm2.TPMRC {
	if len(answer) == 0 {
		return tpm2.TPMRCRetry
	}
	if len(answer) < headerSize {
		return tpm2.TPMRCSuccess // who reads it will say what is wrong with it
	}
	return tpm2.TPMRC(binary.BigEndian.Uint32(answer[6:]))
}

// pause waits, and tells whether the operation still has time.
func (c *conn) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-c.ctx.Done():
		return false
	}
}

// socket speaks to swtpm's command socket. It dials for each command, because swtpm serves one connection at a time and a held one
// would lock out every other tool.
type socket struct{ path string }

func openSocket(path string) (transport.TPMCloser, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return nil, errors.New("not a socket; expected swtpm:PATH of swtpm's --server type=unixio socket")
	}
	return socket{path}, nil
}

// Send implements transport.TPM: one command, one answer, bounded in size and time.
func (s socket) Send(command []byte) ([]byte, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).Dial("unix", s.path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(command); err != nil {
		return nil, err
	}
	response := make([]byte, headerSize, maxResponse)
	if _, err := io.ReadFull(conn, response); err != nil {
		return nil, fmt.Errorf("read the header of an answer: %w", err)
	}
	size := binary.BigEndian.Uint32(response[2:6])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("answer claims %d bytes; expected %d to %d", size, headerSize, maxResponse)
	}
	response = response[:size]
	if _, err := io.ReadFull(conn, response[headerSize:]); err != nil {
		return nil, fmt.Errorf("read an answer: %w", err)
	}
	return response, nil
}

// Close implements io.Closer; nothing is held between commands.
func (socket) Close() error { return nil }

func openDevice(path string) (transport.TPMCloser, error) {
	dev, err := linuxtpm.Open(path)
	if errors.Is(err, linuxtpm.ErrFileIsNotDevice) {
		return nil, fmt.Errorf("%w; expected a device such as /dev/tpmrm0, or swtpm:PATH", err)
	}
	return dev, err
}

// broken stands for a device that could not be opened again: every command repeats why.
type broken struct{ err error }

func (b broken) Send([]byte) ([]byte, error) { return nil, b.err }
func (broken) Close() error                  { return nil }

// isFlush reports whether a command frees a slot (TPM2_FlushContext).
func isFlush(command []byte) bool {
	return len(command) >= headerSize && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:10])) == tpm2.TPMCCFlushContext
}

// The handle ranges that occupy slots (TPM 2.0 Part 2, 7.2), and those that hold EKs (TCG EK Credential Profile 2.6, 2.2).
const (
	loadedSessions   = 0x02000000
	savedSessions    = 0x03000000
	transientObjects = 0x80000000
	persistentEKs    = 0x81010000
	nvCertificates   = 0x01C00002
	rangeHandles     = 64
)

// handles lists the handles in use from first on, within first's range.
func (c *conn) handles(first uint32) ([]tpm2.TPMHandle, error) {
	answer, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: rangeHandles}.Execute(c)
	if err != nil {
		return nil, err
	}
	list, err := answer.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	return list.Handle, nil
}

// flushAll frees every object and session slot.
func (c *conn) flushAll() error {
	for _, first := range []uint32{transientObjects, loadedSessions, savedSessions} {
		handles, err := c.handles(first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			// Sessions are listed with the kind byte of a saved or a policy session; any of them flushes as it stands.
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(c); err != nil && !errors.Is(err, tpm2.TPMRCHandle) {
				return err
			}
		}
	}
	return nil
}

// flush frees one slot. The operation's own error counts; a slot that stays full is cleared before the next one.
func (c *conn) flush(h tpm2.TPMHandle) {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(c); err != nil {
		c.tpm.suspect = true
	}
}

// property reads one TPM_PT value.
func (c *conn) property(p tpm2.TPMPT) (uint32, error) {
	answer, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(c)
	if err != nil {
		return 0, err
	}
	props, err := answer.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, err
	}
	if len(props.TPMProperty) != 1 || props.TPMProperty[0].Property != p {
		return 0, fmt.Errorf("the TPM does not tell property %#x", uint32(p))
	}
	return props.TPMProperty[0].Value, nil
}

// leakFree wraps a policy callback so that its session is flushed when it fails: go-tpm 0.9.8 leaves it loaded.
func leakFree(callback tpm2.PolicyCallback) tpm2.PolicyCallback {
	return func(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		err := callback(t, session, nonce)
		if err != nil {
			_, _ = tpm2.FlushContext{FlushHandle: session}.Execute(t)
		}
		return err
	}
}
