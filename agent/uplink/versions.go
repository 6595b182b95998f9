package uplink

import (
	"time"

	"wardlink/telemetry"
)

// muteTime is how long a server that refused a hello is spoken to without one: it may be brought up to date meanwhile.
const muteTime = 24 * time.Hour

// named reports whether a CONNECT to the server names what this agent speaks. A server of the first release refuses any user name, and
// speaks version 1 alone.
func (u *Uplink) named(server string, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.hello.Oldest > 1 || now.After(u.mute[server])
}

// anonymous notes that the server takes no hello.
func (u *Uplink) anonymous(server string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mute[server] = now.Add(muteTime)
}

// welcome takes what the server answers to the hello. The version of the session is the server's choice; one that this agent does not
// speak cannot be meant.
func (u *Uplink) welcome(body []byte) {
	w, err := telemetry.DecodeWelcome(body)
	if err == nil && (w.Version < u.hello.Oldest || w.Version > u.hello.Newest) {
		u.log.Warn("the server chose a protocol version that this agent does not speak", "version", w.Version, "speaks", u.hello.Versions.String())
		return
	}
	if err != nil {
		u.log.Warn("the server's hello cannot be read", "error", err)
		return
	}
	u.note(func(s *Status) {
		s.Protocol, s.ServerBuild, s.ServerSpeak = w.Version, w.Build, w.Server.String()
	})
}
