package ingest

import (
	"maps"
	"time"
)

// Rival is a second agent under one identity: connections that came with an older certificate than that of the gateway's session, and were refused.
//
// Each agent has its own certificate, and each certificate of a gateway is newer than the one before, so that an agent never comes back with an older
// one than it is connected with. Who does is another agent on the same TPM, or one that was started from a former copy of the disk.
type Rival struct {
	Count  uint64 // since the server's start
	Last   time.Time
	Live   string // ip:port of the session that stood
	Peer   string // of the one that was refused
	Serial string // of its certificate, lower-case hex
}

// rivals says whether a connection is a rival of the session that stands. One whose session is ending is none: then nobody is in its way.
func (c *session) rivals(standing *session) bool {
	standing.mu.Lock()
	defer standing.mu.Unlock()
	return standing.end == "" && !standing.opened.IsZero() && c.id.serial != standing.id.serial && c.id.begun.Before(standing.id.begun)
}

func (r *rates) rival(gateway string, one Rival) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one.Last = r.turn()
	if r.rivals == nil {
		r.rivals = make(map[string]Rival)
	}
	if _, known := r.rivals[gateway]; !known && len(r.rivals) >= maxRates {
		return // as with parked
	}
	one.Count = r.rivals[gateway].Count + 1
	r.rivals[gateway] = one
}

// Rivals gives the gateways that two agents claimed to be at once, since the start.
func (s *Server) Rivals() map[string]Rival {
	s.rates.mu.Lock()
	defer s.rates.mu.Unlock()
	return maps.Clone(s.rates.rivals)
}
