package agent

import (
	"sync"

	"wardlink/buffer"
	"wardlink/telemetry"
)

// maxCopies bounds the memory for messages without a control id; the oldest half is forgotten beyond it, which at worst takes a
// repeated identical reading without MSH-10 for a resend.
const maxCopies = 4096

// copies decides whether identical bytes are a resend or a new message (WIRE.md, "keys"). A source that gives a control id
// (MSH-10) never sends two messages of the same bytes. One that gives none may: bytes that come again after the former copy's
// acknowledgement was written to the socket are a new message, and its copy number is one more.
type copies struct {
	mu    sync.Mutex
	acked map[[32]byte]bool // written to the socket and not yet followed by a further copy; only messages without MSH-10
	order [][32]byte
	bare  map[[32]byte]bool // digests without MSH-10 that are under way
}

func newCopies() *copies {
	return &copies{acked: map[[32]byte]bool{}, bare: map[[32]byte]bool{}}
}

// number gives the message's copy number, or says that the message is durable already.
func (c *copies) number(buf *buffer.Buffer, m telemetry.Message) (n uint32, known bool) {
	highest, held := buf.Known(m.Digest)
	if m.ControlID != "" {
		return 0, held
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if held && !c.acked[m.Digest] {
		return 0, true // the former copy is durable, but its sender may not know: a resend
	}
	c.bare[m.Digest] = true
	delete(c.acked, m.Digest)
	if held {
		return highest + 1, false
	}
	return 0, false
}

// acknowledged notes that an acknowledgement was written.
func (c *copies) acknowledged(digest [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.bare[digest] {
		return
	}
	delete(c.bare, digest)
	if len(c.order) >= maxCopies {
		for _, d := range c.order[:maxCopies/2] {
			delete(c.acked, d)
		}
		c.order = append([][32]byte(nil), c.order[maxCopies/2:]...)
	}
	c.acked[digest] = true
	c.order = append(c.order, digest)
}
