package uplink

import (
	"errors"
	"time"

	"wardlink/telemetry"
)

// asked is what a server said of when to come back: by a hint, or by CONNACK 3. It holds for the wait that follows. An alarm does not wait
// as long as that, and longer than it would by itself: the alarms of a whole fleet may be what the server cannot take.
type asked struct {
	after       time.Duration // 0: no hint
	at          time.Time     // of the hint
	unavailable bool          // CONNACK 3
}

// hintAge is for how long a hint speaks of the connection's end. One that ends later has ended for another reason.
const hintAge = time.Minute

var errAsked = errors.New("it asked to be left alone for a while")

// hinted takes a hint.
func (u *Uplink) hinted(body []byte, now time.Time) {
	h, err := telemetry.DecodeHint(body)
	if err != nil {
		u.log.Warn("the server's hint cannot be read", "error", err)
		return
	}
	u.asked.after, u.asked.at = h.After, now
	u.log.Info("the server asks to come back later", "after", h.After)
}

// take gives what was asked for, and forgets it.
func (a *asked) take(now time.Time) (after time.Duration, any bool) {
	if a.after > 0 && now.Sub(a.at) < hintAge {
		after = a.after
	}
	any = after > 0 || a.unavailable
	*a = asked{}
	return after, any
}

// elsewhere says whether there was a hint and there are other servers: then they are tried instead.
func (a *asked) elsewhere(servers []string, now time.Time) bool {
	if a.after == 0 || now.Sub(a.at) >= hintAge || len(servers) < 2 {
		return false
	}
	*a = asked{}
	return true
}
