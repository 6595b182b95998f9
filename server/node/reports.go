package node

import (
	"crypto/rand"
	"sync"
	"time"

	"wardlink/server/ingest"
)

// Changes remembers whose documents have changed, for nodes that ask. Its memory is bounded: who is too far behind is told "all".
type Changes struct {
	instance string

	mu    sync.Mutex
	first uint64 // number of list[0]
	list  []string
}

// NewChanges remembers nothing yet.
func NewChanges() *Changes { return &Changes{instance: rand.Text(), first: 1} }

// Add notes changes. It does not block.
func (c *Changes) Add(gateways []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, gateways...)
	if over := len(c.list) - maxChanges; over > 0 {
		c.list = append([]string(nil), c.list[over:]...)
		c.first += uint64(over)
	}
}

// since is what has changed after a number of an instance. A node that knows no instance yet is told nothing: its gateways have what they
// were sent as they subscribed.
func (c *Changes) since(instance string, after uint64) Answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := Answer{Instance: c.instance, Last: c.first + uint64(len(c.list)) - 1}
	switch {
	case instance == "":
	case instance != c.instance || after+1 < c.first || after > a.Last:
		a.All = true
	default:
		a.Gateways = append(a.Gateways, c.list[after+1-c.first:]...)
	}
	return a
}

// silent is after how long without a word a node's sessions are no more shown.
const silent = 90 * time.Second

// Reports keeps what each node said last.
type Reports struct {
	mu  sync.Mutex
	all map[string]*standing
}

type standing struct {
	Report
	heard, reported time.Time
}

// NewReports keeps nothing yet.
func NewReports() *Reports { return &Reports{all: make(map[string]*standing)} }

func (r *Reports) take(name string, said *Report, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.all[name]
	if s == nil {
		s = &standing{}
		r.all[name] = s
	}
	s.heard = now
	if said != nil {
		said.bound(now)
		s.Report, s.reported = *said, now
	}
}

// bound takes times of the future for now: the newest session of a gateway is shown, and a node whose clock is ahead, or that lies, must not hide those
// at others for longer than until they speak again.
func (r *Report) bound(now time.Time) {
	for i := range r.Sessions {
		if r.Sessions[i].Opened.After(now) {
			r.Sessions[i].Opened = now
		}
	}
	for gateway, t := range r.Traffic {
		if t.Opened.After(now) {
			t.Opened = now
			r.Traffic[gateway] = t
		}
	}
}

// each calls f for what each node that speaks said last.
func (r *Reports) each(f func(Report)) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, s := range r.all {
		if now.Sub(s.heard) > silent {
			delete(r.all, name)
			continue
		}
		f(s.Report)
	}
}

// Heard gives when each node that speaks was heard last, and how many sessions it has.
func (r *Reports) Heard() map[string]Heard {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]Heard, len(r.all))
	for name, s := range r.all {
		out[name] = Heard{At: s.heard, Sessions: len(s.Sessions)}
	}
	return out
}

// Heard is when a node was heard last.
type Heard struct {
	At       time.Time
	Sessions int
}

// Everywhere is what the sessions of this process and of all nodes do.
type Everywhere struct {
	*ingest.Server
	Reports *Reports
}

// Sessions are those of this process and what the nodes said last of theirs. While a gateway changes from one to another it may stand here
// twice; the newer one counts.
func (e Everywhere) Sessions() []ingest.SessionInfo {
	out := e.Server.Sessions()
	e.Reports.each(func(r Report) { out = append(out, r.Sessions...) })
	newest := make(map[string]int, len(out))
	kept := out[:0]
	for _, s := range out {
		i, known := newest[s.Gateway]
		switch {
		case !known:
			newest[s.Gateway] = len(kept)
			kept = append(kept, s)
		case s.Opened.After(kept[i].Opened):
			kept[i] = s
		}
	}
	return kept
}

// Traffic is what has passed between one gateway and the process that has or had it last.
func (e Everywhere) Traffic(gateway string) ingest.Traffic {
	out := e.Server.Traffic(gateway)
	e.Reports.each(func(r Report) {
		if t, ok := r.Traffic[gateway]; ok && t.Opened.After(out.Opened) {
			out = t
		}
	})
	return out
}

// RefusalRates are the larger counts of all.
func (e Everywhere) RefusalRates() map[string]ingest.Rate {
	out := e.Server.RefusalRates()
	e.Reports.each(func(r Report) {
		for subject, rate := range r.Rates {
			if rate.Count > out[subject].Count {
				out[subject] = rate
			}
		}
	})
	return out
}

// RefusedBatches are the sums of all.
func (e Everywhere) RefusedBatches() map[string]ingest.Parked {
	out := e.Server.RefusedBatches()
	e.Reports.each(func(r Report) {
		for gateway, p := range r.Parked {
			if out == nil {
				out = make(map[string]ingest.Parked)
			}
			if have := out[gateway]; have.Last.After(p.Last) {
				p.Last, p.Reason = have.Last, have.Reason
			}
			p.Count += out[gateway].Count
			out[gateway] = p
		}
	})
	return out
}

// Rivals are the sums of all.
func (e Everywhere) Rivals() map[string]ingest.Rival {
	out := e.Server.Rivals()
	e.Reports.each(func(r Report) {
		for gateway, one := range r.Rivals {
			if out == nil {
				out = make(map[string]ingest.Rival)
			}
			have := out[gateway]
			count := have.Count + one.Count
			if have.Last.After(one.Last) {
				one = have
			}
			one.Count = count
			out[gateway] = one
		}
	})
	return out
}
