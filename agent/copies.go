package agent

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"sync"
)

// maxCopies bounds what is remembered of messages without a unique id; the one not seen for longest is forgotten.
const maxCopies = 4096

// messageKey names a message of a source within this gateway: identical bytes from two sources are two messages.
func messageKey(source string, digest [32]byte) [32]byte {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(source))))
	h.Write([]byte(source))
	h.Write(digest[:])
	return [32]byte(h.Sum(nil))
}

// copies decides whether identical bytes are a resend or a new message, for sources that give no unique id (WIRE.md, "keys"). Bytes
// that come again are a resend until the acknowledgement of the former copy was written to the socket, and a new message after that.
//
// A copy's number is random, so that it never repeats that of a copy which nobody remembers any more. While one copy is under way
// the same bytes share its outcome; a copy that failed keeps its number, since its batch may yet turn up.
type copies struct {
	mu    sync.Mutex
	byKey map[[32]byte]*list.Element // of *copyOf
	seen  *list.List                 // most recent first
}

type copyState int

const (
	underWay copyState = iota // its batch is being committed
	failed                    // its commit failed: not acknowledged
	onDisk                    // committed; its acknowledgement is not known to be written
	written                   // and acknowledged: the same bytes are now a new message
)

// copyOf is one message without a unique id. err may be read once done is closed.
type copyOf struct {
	key    [32]byte
	number uint32
	state  copyState
	done   chan struct{}
	err    error
}

// role is what a delivery has to do with its copy.
type role int

const (
	lead   role = iota // commit it, then call end
	follow             // wait for done
	resent             // nothing: it is durable
)

func newCopies() *copies {
	return &copies{byKey: map[[32]byte]*list.Element{}, seen: list.New()}
}

// begin finds or makes the copy that a delivery belongs to. held asks the buffer whether it holds the message at all: after a restart
// that is all there is to know, and the first repeat then counts as a resend.
func (c *copies) begin(key [32]byte, held func() bool) (*copyOf, role) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.byKey[key]
	if !ok {
		e := &copyOf{key: key, state: written}
		if held() {
			e.state = onDisk
		}
		el = c.seen.PushFront(e)
		c.byKey[key] = el
		c.forget()
	}
	c.seen.MoveToFront(el)
	e := el.Value.(*copyOf)
	switch e.state {
	case underWay:
		return e, follow
	case onDisk:
		return e, resent
	case written:
		e.number = 1 + rand.Uint32N(1<<32-1)
	case failed: // the same number again
	}
	e.state, e.done, e.err = underWay, make(chan struct{}), nil
	return e, lead
}

// end tells the outcome of a copy's commit.
func (c *copies) end(e *copyOf, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.err, e.state = err, onDisk
	if err != nil {
		e.state = failed
	}
	close(e.done)
}

// acknowledged notes that an acknowledgement was written.
func (c *copies) acknowledged(key [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.byKey[key]; ok {
		if e := el.Value.(*copyOf); e.state == onDisk {
			e.state = written
		}
	}
}

// forget drops the oldest beyond the bound. Copies under way stay; there are at most as many as connections.
func (c *copies) forget() {
	for el := c.seen.Back(); el != nil && c.seen.Len() > maxCopies; {
		older := el.Prev()
		if e := el.Value.(*copyOf); e.state != underWay {
			c.seen.Remove(el)
			delete(c.byKey, e.key)
		}
		el = older
	}
}
