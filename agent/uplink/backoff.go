package uplink

import (
	"bytes"
	"context"
	"math/rand/v2"
	"time"
)

// backoff is full jitter (each wait is uniform below a ceiling that doubles): after an outage a thousand gateways must not come back
// in step.
type backoff struct {
	timing timing
	tries  int
}

// floor keeps the luckiest draw from being a hot loop.
const floor = 100 * time.Millisecond

func (b *backoff) reset() { b.tries = 0 }

// ease is for a short connection that took batches to their end, be it that they were refused: the server is well and the network is not, as where a cable or a radio
// link comes and goes. The next wait stays below four seconds, so that such a line is used while it is there.
func (b *backoff) ease() { b.tries = min(b.tries, 2) }

// next draws the wait before the next attempt, below most at any rate; the attempt counts all the same.
func (b *backoff) next(most time.Duration) time.Duration {
	ceiling := b.timing.most
	if b.tries < 20 { // beyond, the shift could overflow
		ceiling = min(b.timing.least<<b.tries, b.timing.most)
	}
	b.tries++
	return b.draw(min(ceiling, most))
}

func (b *backoff) draw(ceiling time.Duration) time.Duration {
	return floor + rand.N(max(ceiling-floor, 1))
}

// pause waits before the next attempt. An alarm that comes meanwhile shortens a long wait. A missing identity is a local matter that
// another part of the agent works on: it is looked for every second, and no backoff is built up. shown is the certificate of the attempt
// before: a new one that comes during the wait is tried at once, because the old one, expired or revoked, may have been the trouble. turned ends the wait: there are other servers to try.
func (u *Uplink) pause(ctx context.Context, b *backoff, local bool, shown []byte, turned <-chan struct{}) {
	urgency, _ := u.cfg.Buffer.(Urgency)
	hurried := func() bool { return urgency != nil && urgency.Urgent() }
	wait, urgent := u.timing.least, u.timing.urgent
	if !local {
		after, asked := u.asked.take(time.Now())
		if asked {
			urgent = u.timing.asked
		}
		most := u.timing.most
		if hurried() {
			most = urgent
		}
		if after > 0 {
			wait = after/2 + rand.N(after/2+1)
			if hurried() {
				wait, most = min(wait, b.draw(most)), u.timing.urgent
			}
			wait = max(wait, b.next(most)) // a hint asks for more time; one that asks for less would have the gateway spin
		} else {
			wait = b.next(most)
		}
	}
	until := time.Now().Add(wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	identity := time.NewTicker(u.timing.identity)
	defer identity.Stop()
	sooner := func(ceiling time.Duration) {
		if time.Until(until) > ceiling {
			wait := b.draw(ceiling)
			until = time.Now().Add(wait)
			timer.Reset(wait)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-turned:
			b.reset()
			return
		case <-u.cfg.Buffer.Changed(): // not lost for the link to come: it begins with a Take
			if hurried() {
				sooner(urgent)
			}
		case <-identity.C:
			// Once for each certificate: one that is refused too must not keep the waits short.
			if leaf := u.leaf(); leaf != nil && !bytes.Equal(leaf, shown) {
				shown = leaf
				sooner(u.timing.least)
			}
		}
	}
}
