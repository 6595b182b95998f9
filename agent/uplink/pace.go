package uplink

import "time"

// pace says how many bytes may be in flight. What is in flight stands before everything that is more urgent, and is sent again when the
// connection ends; so on a slow line it has to be little. It grows by what is acknowledged soon, and halves when an acknowledgement was long
// in coming: at 10 KB/s some 40 KB are under way, where a window of 1 MB would take two minutes and count as dead.
type pace struct {
	most  int       // bytes in flight; one batch may be in flight whatever its size
	since time.Time // when most was last halved: what was sent before says nothing of it
	heard time.Time // the last acknowledgement
}

const (
	windowBytes = 1 << 20  // the most: with Take's own bound at most 2 MB of frames are in memory
	windowStart = 64 << 10 // of a new connection; doubles with each round trip
	windowLeast = 8 << 10

	promptly = time.Second     // an acknowledgement that comes so soon lets more be in flight
	slowly   = 4 * time.Second // and one that takes so long, less
)

// answered notes an acknowledgement of size bytes that were sent at.
func (p *pace) answered(at, now time.Time, size int) {
	p.heard = now
	switch took := now.Sub(at); {
	case took < promptly:
		p.most = min(p.most+size, windowBytes)
	case took > slowly && at.After(p.since):
		p.most, p.since = max(p.most/2, windowLeast), now
	}
}
