package ca

import (
	"crypto/sha256"
	"sync"
	"time"

	"wardlink/enroll/verify"
)

// Bounds of the challenges that wait for their answer. The protocol has no session: the secret itself names its challenge.
const (
	maxPending  = 4096 // each holds about 2 KB
	pendingLife = time.Minute
)

// pending keeps the challenges sent and not yet answered, by the SHA-256 of their secret: the secrets themselves are not kept.
type pending struct {
	now func() time.Time

	mu      sync.Mutex
	entries map[[32]byte]challenged
}

type challenged struct {
	verified *verify.Verified
	until    time.Time
}

func newPending(now func() time.Time) *pending {
	return &pending{now: now, entries: make(map[[32]byte]challenged)}
}

// add keeps a challenge; false when there are too many, so that a flood is refused instead of evicting honest gateways.
func (p *pending) add(secret []byte, v *verify.Verified) bool {
	now := p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.entries) >= maxPending {
		for k, e := range p.entries {
			if now.After(e.until) {
				delete(p.entries, k)
			}
		}
	}
	if len(p.entries) >= maxPending {
		return false
	}
	p.entries[sha256.Sum256(secret)] = challenged{v, now.Add(pendingLife)}
	return true
}

// take removes and returns the challenge of a secret: each is answered once, within its minute. Looking up by hash keeps the time it
// takes independent of how much of a guess is right.
func (p *pending) take(secret []byte) (*verify.Verified, bool) {
	key := sha256.Sum256(secret)
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.entries[key]
	delete(p.entries, key)
	if !ok || p.now().After(e.until) {
		return nil, false
	}
	return e.verified, true
}
