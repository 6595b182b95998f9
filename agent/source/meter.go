package source

import (
	"sync"
	"time"
)

// meter counts the messages of one source id.
type meter struct {
	received, acknowledged, notUnderstood, failed tally
	rhythm                                        rhythm

	mu     sync.Mutex
	lately Rate
}

// message counts a whole message.
func (m *meter) message(now time.Time) {
	m.received.Add(1)
	m.rhythm.note(now)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lately.Add(now, 1)
}

// stats is what the meter knows of Stats.
func (m *meter) stats(now time.Time) Stats {
	st := Stats{
		Received: m.received.Load(), Acknowledged: m.acknowledged.Load(), NotUnderstood: m.notUnderstood.Load(), Failed: m.failed.Load(),
		LastReceived: m.received.at(), LastAcknowledged: m.acknowledged.at(), LastNotUnderstood: m.notUnderstood.at(), LastFailed: m.failed.at(),
		Usual: m.rhythm.usual(),
	}
	m.mu.Lock()
	st.LastMinute = m.lately.Within(now)
	m.mu.Unlock()
	return st
}
