package uplink

import (
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

// next draws the wait before the next attempt. urgent caps the ceiling but still counts the attempt.
func (b *backoff) next(urgent bool) time.Duration {
	ceiling := b.timing.most
	if b.tries < 20 { // beyond, the shift could overflow
		ceiling = min(b.timing.least<<b.tries, b.timing.most)
	}
	b.tries++
	if urgent {
		ceiling = min(ceiling, b.timing.urgent)
	}
	return b.draw(ceiling)
}

func (b *backoff) draw(ceiling time.Duration) time.Duration {
	return floor + rand.N(max(ceiling-floor, 1))
}

// pause waits before the next attempt. An alarm that comes meanwhile shortens a long wait. A missing identity is a local matter that
// another part of the agent works on: it is looked for every second, and no backoff is built up.
func (u *Uplink) pause(ctx context.Context, b *backoff, local bool) {
	urgency, _ := u.cfg.Buffer.(Urgency)
	wait := u.timing.least
	if !local {
		wait = b.next(urgency != nil && urgency.Urgent())
	}
	until := time.Now().Add(wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-u.cfg.Buffer.Changed(): // not lost for the link to come: it begins with a Take
			if urgency != nil && urgency.Urgent() && time.Until(until) > u.timing.urgent {
				sooner := b.draw(u.timing.urgent)
				until = time.Now().Add(sooner)
				timer.Reset(sooner)
			}
		}
	}
}
