package uplink

import (
	"context"
	"errors"
	"fmt"
)

// succession is the making of the connection that takes a link's place: for a new certificate, for other servers, or for one of the same
// servers that comes first and has had its rest. Of pump's goroutine alone.
type succession struct {
	l       *link
	dialing chan *transport // at most one dial at a time; nil while there is none
}

// look begins a dial where there is a reason for one.
func (s *succession) look(ctx context.Context) {
	if s.dialing != nil {
		return
	}
	u := s.l.u
	among, better := u.servers, u.cfg.Way.Better(u.servers(), s.l.t.server)
	switch {
	case u.changed(s.l.t):
	case len(better) > 0:
		among = func() []string { return better }
	default:
		return
	}
	s.dialing = make(chan *transport, 1)
	go u.successor(ctx, among, s.dialing)
}

// abandon closes the connection of a dial that nobody waits for any more, once it ends.
func (s *succession) abandon() {
	if dialing := s.dialing; dialing != nil {
		go func() {
			if t := <-dialing; t != nil {
				_ = t.conn.Close()
			}
		}()
	}
	s.dialing = nil
}

// successor makes the next connection while the present one goes on sending. A failure is noted; the next look tries again, and the server
// ends the present connection when its certificate does.
func (u *Uplink) successor(ctx context.Context, among func() []string, to chan<- *transport) {
	t, err := u.dial(ctx, among)
	if err != nil && ctx.Err() == nil && !errors.Is(err, errMoved) {
		u.fault(fmt.Errorf("connection to take this one's place: %w", err))
	}
	to <- t
}
