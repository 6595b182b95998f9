package server

import (
	"cmp"
	"fmt"
	"time"

	"wardlink/server/ingest"
)

// Limits are those of the gateways' port that an installation may have reason to change. Zero fields are the defaults, which let 10,000 gateways behind
// one address come back at once.
type Limits struct {
	Sessions            int `yaml:"sessions"`                // gateways connected at a time; 20,000
	AddressConnections  int `yaml:"connections_per_address"` // 20,000: each gateway may have two while its certificate changes
	Arrivals            int `yaml:"arrivals"`                // connections that have proven nothing yet; 16,384
	Handshakes          int `yaml:"handshakes"`              // under way at a time; 512
	HandshakeProcessors int `yaml:"handshake_processors"`    // that handshakes, admissions and ends of sessions may use; half of them, one at least
	// While publishes wait half a second and more for the journal, of one gateway and of all behind one address, per second.
	GatewayPublishes int `yaml:"publishes_per_gateway"` // 500
	GatewayKilobytes int `yaml:"kilobytes_per_gateway"` // 4,096
	AddressPublishes int `yaml:"publishes_per_address"` // 50,000
	AddressKilobytes int `yaml:"kilobytes_per_address"` // 262,144
	// Within so many seconds sessions end that may be a revoked gateway's, since the registry cannot be asked; 30.
	BlindSeconds int `yaml:"blind_seconds"`
}

const blindSeconds = 30

// blind is how long after a process last saw the registry its sessions end, at the latest.
func (l Limits) blind() time.Duration {
	return time.Duration(cmp.Or(l.BlindSeconds, blindSeconds)) * time.Second
}

// ranges are the names, values and bounds of the fields.
func (l *Limits) ranges() []struct {
	name   string
	value  int
	lo, hi int
} {
	return []struct {
		name   string
		value  int
		lo, hi int
	}{
		{"sessions", l.Sessions, 1, 1_000_000},
		{"connections_per_address", l.AddressConnections, 1, 1_000_000},
		{"arrivals", l.Arrivals, leastShare, 1_000_000},
		{"handshakes", l.Handshakes, 1, 65_536},
		{"handshake_processors", l.HandshakeProcessors, 1, 4096},
		{"publishes_per_gateway", l.GatewayPublishes, 1, 1_000_000},
		{"kilobytes_per_gateway", l.GatewayKilobytes, 256, 16 << 20}, // one frame of the largest a second
		{"publishes_per_address", l.AddressPublishes, 1, 10_000_000},
		{"kilobytes_per_address", l.AddressKilobytes, 256, 64 << 20},
		{"blind_seconds", l.BlindSeconds, 5, blindSeconds},
	}
}

// Check says what is wrong with the values.
func (l Limits) Check() error {
	for _, r := range l.ranges() {
		if r.value != 0 && (r.value < r.lo || r.value > r.hi) {
			return fmt.Errorf("%s: %d; expected %d to %d, or nothing for the default", r.name, r.value, r.lo, r.hi)
		}
	}
	return nil
}

func (l Limits) handshakes() handshakeLimits {
	return handshakeLimits{arrivals: l.Arrivals, slots: l.Handshakes, cores: l.HandshakeProcessors, each: l.AddressConnections}
}

func (l Limits) ingest() ingest.Limits {
	pace := func(publishes, kilobytes int) ingest.Pace {
		return ingest.Pace{Publishes: float64(publishes), Bytes: float64(kilobytes) * 1024}
	}
	// Sessions end within Blind, the time of a question, and a poll.
	sight := (l.blind() - time.Second) * 8 / 9
	if question := ingest.QuestionTime(sight); sight+question > l.blind()-time.Second {
		sight = l.blind() - time.Second - question
	}
	return ingest.Limits{
		Blind:    sight,
		Sessions: l.Sessions, Gateway: pace(l.GatewayPublishes, l.GatewayKilobytes), Address: pace(l.AddressPublishes, l.AddressKilobytes),
	}
}
