package agent

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/agent/source"
)

// feeds are the sources that an agent has, as the configuration in use wants them.
type feeds struct {
	mu    sync.Mutex
	list  []*feed
	past  map[string]source.Stats // what sources of that id counted before they were changed or removed
	begin func(*feed)             // has a source run; nil while the agent does not serve
}

// feed is one source with its configuration.
type feed struct {
	source.Source
	cfg  SourceConfig
	stop context.CancelFunc // of a source that runs
	done chan struct{}      // closed once it has ended
	over bool               // it has, and what it counted is in feeds.past; under feeds.mu
}

// all is what there is now, in the configuration's order.
func (f *feeds) all() []*feed {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list // replaced as a whole, never changed
}

// stats are all sources' counters since the agent's start, whatever became of their configuration meanwhile.
func (f *feeds) stats() map[string]source.Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[string]source.Stats, len(f.list))
	for _, s := range f.list {
		if out[s.ID()] = f.past[s.ID()]; s.over {
			continue
		}
		st := s.Stats()
		for _, b := range st.Bound {
			out[b.ID] = since(b, f.past[b.ID])
		}
		out[s.ID()] = since(st, f.past[s.ID()])
	}
	return out
}

// since is what a source counts after others of its id. What came of each binding counts from the last change of the source's configuration.
func since(s, past source.Stats) source.Stats {
	s.Received += past.Received
	s.Acknowledged += past.Acknowledged
	s.NotUnderstood += past.NotUnderstood
	s.Refused += past.Refused
	s.Failed += past.Failed
	s.NotAllowed += past.NotAllowed
	s.OverLimit += past.OverLimit
	s.Slowed += past.Slowed
	s.BedConflicts += past.BedConflicts
	if s.TLS != nil && past.TLS != nil {
		s.TLS.Refused += past.TLS.Refused
		s.TLS.Expired += past.TLS.Expired
	}
	for _, at := range []struct {
		now *time.Time
		was time.Time
	}{
		{&s.LastReceived, past.LastReceived}, {&s.LastAcknowledged, past.LastAcknowledged}, {&s.LastNotUnderstood, past.LastNotUnderstood},
		{&s.LastRefused, past.LastRefused}, {&s.LastFailed, past.LastFailed}, {&s.LastUnwelcome, past.LastUnwelcome}, {&s.LastSlowed, past.LastSlowed}, {&s.LastBedConflict, past.LastBedConflict},
	} {
		if at.now.Before(at.was) {
			*at.now = at.was
		}
	}
	if s.Usual == 0 {
		s.Usual = past.Usual
	}
	return s
}

// run has all sources run in g, and those that come later, until ctx ends. gctx is g's: an error there ends the agent, while the end of ctx
// alone leaves it to drain.
func (f *feeds) run(g *errgroup.Group, gctx, ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin = func(s *feed) {
		var own context.Context
		own, s.stop = context.WithCancel(ctx)
		s.done = make(chan struct{})
		g.Go(func() error {
			defer close(s.done)
			defer s.stop()
			if err := s.Run(own); own.Err() == nil || gctx.Err() != nil {
				return err
			}
			return nil // it was taken out of the configuration, or the gateway takes nothing more and drains
		})
	}
	for _, s := range f.list {
		f.begin(s)
	}
}

// end stops a source that runs: its port is closed, what was wholly read is made durable and acknowledged, its connections are closed. What
// it counted stays.
func (f *feeds) end(s *feed) {
	s.stop()
	<-s.done // within the source's StopTimeout
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.past == nil {
		f.past = map[string]source.Stats{}
	}
	st := s.Stats()
	for _, b := range st.Bound {
		f.past[b.ID] = since(b, f.past[b.ID])
	}
	f.past[s.ID()], s.over = since(st, f.past[s.ID()]), true
}
