package enroll

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// What the hospital issues, and what follows from it for an issuer that is away.
const (
	backdated = time.Minute // of each certificate, for clocks that are behind
	answering = 3 * time.Second
	latest    = (life + backdated) * 6 / 10 // after a certificate was issued a gateway has begun to renew it
	again     = requestTimeout + longest    // after an issuer's return every gateway has asked it: a request that hung, and the longest pause
	promised  = life - latest - again - answering
	restart   = time.Minute      // a restart takes less
	told      = 10 * time.Minute // after a start a gateway's clock is right, as the hospital tells it
)

// absence is a time in which the issuer is away: it refuses connections, or swallows what it is sent.
type absence struct {
	from, to time.Duration // since the month began
	silent   bool
	lapsing  bool // it lasts for longer than a certificate's second half can bear
}

// month is what befalls a fleet of gateways and the issuer of their certificates within thirty days.
type month struct {
	*testing.T
	begun      time.Time
	gateways   int
	away       []absence
	rotated    time.Duration // the issuer has another CA from here on
	glance     time.Duration // of every gateway
	cut, power time.Duration // no gateway has power in between; all come back in the same second
	mu         sync.Mutex
	asked      []int  // requests in each minute
	stop       func() // ends the month
}

const monthly = 30 * 24 * time.Hour

// TestAMonthWithoutALapse: thirty simulated days of gateways that restart, stand still for days, and whose clocks are set wrong, at an issuer that errs, is away for
// as long as half a life allows, for a day, and after a power cut, and that changes its CA. FLEET_GATEWAYS is how many gateways there are (default
// 30); a seed is printed, WARDLINK_SEED repeats it. What must hold:
//
//  1. No gateway that is on lets its certificate end, unless the issuer was away for longer than promised; then it has another one as soon as the longest
//     pause between two attempts is over.
//  2. None is issued before half its predecessor's life is over, but for a clock that was set forward, once for each time; no gateway asks twice within
//     a second.
//  3. After the issuer's return no minute brings more requests than full jitter has it; in quiet times renewals stay spread, though all gateways began in the
//     same second.
//  4. Who has a certificate in the end has it from the issuer's present CA.
func TestAMonthWithoutALapse(t *testing.T) {
	gateways, seed := 30, uint64(time.Now().UnixNano())
	for name, set := range map[string]func(n uint64){"FLEET_GATEWAYS": func(n uint64) { gateways = int(n) }, "WARDLINK_SEED": func(n uint64) { seed = n }} {
		if s := os.Getenv(name); s != "" {
			n, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			set(n)
		}
	}
	t.Logf("%d gateways, WARDLINK_SEED=%d; an issuer may be away for %s", gateways, seed, promised)
	const day = 24 * time.Hour
	synctest.Test(t, func(t *testing.T) {
		m := &month{T: t, begun: time.Now(), gateways: gateways, asked: make([]int, int(monthly/time.Minute)+1), rotated: 15 * day, cut: 21 * day, power: 21*day + 30*time.Hour,
			away: []absence{
				{from: 4 * day, to: 4*day + promised, silent: true},
				{from: 9 * day, to: 10 * day, lapsing: true},
				{from: 21 * day, to: 21*day + 31*time.Hour, lapsing: true},
				{from: 25 * day, to: 25*day + promised},
			}}
		if m.glance = glance; gateways > 100 {
			m.glance = 5 * glance // looking is nearly all that a month costs
		}
		ctx, cancel := context.WithTimeout(t.Context(), monthly)
		defer cancel()
		m.stop = cancel
		var living sync.WaitGroup
		fleet := make([]*boxed, gateways)
		for i := range fleet {
			fleet[i] = &boxed{month: m, r: rand.New(rand.NewPCG(seed, uint64(i))), clock: rand.New(rand.NewPCG(seed, uint64(i)<<32))}
			living.Go(func() { fleet[i].live(ctx) })
		}
		living.Wait()
		if !t.Failed() {
			m.peaks()
			m.ends(fleet)
		}
	})
}

// since is how much of the month is over.
func (m *month) since() time.Duration { return time.Since(m.begun) }

// absent is the absence that the issuer is in, nil when it is there.
func (m *month) absent() *absence {
	for i, a := range m.away {
		if now := m.since(); now >= a.from && now < a.to {
			return &m.away[i]
		}
	}
	return nil
}

// fail ends the month: a hot loop would fail millions of times.
func (m *month) fail(format string, args ...any) {
	m.Helper()
	m.Errorf(format, args...)
	m.stop()
}

// settling tells that an absence is not over for as long as it takes all gateways to ask again.
func (m *month) settling(at time.Duration) bool {
	for _, a := range m.away {
		if at >= a.from && at < a.to+again+time.Minute {
			return true
		}
	}
	return false
}

// peaks holds the requests of each minute to what the waits imply.
func (m *month) peaks() {
	m.Helper()
	n := float64(m.gateways)
	bound := func(mean float64) int { return int(mean + 6*math.Sqrt(mean) + 10) } // a Poisson variable passes it once in some hundred million minutes
	// A wait between shortest and longest, looked at in a random instant, is over within a minute with this probability.
	mean := (longest + shortest).Minutes() / 2
	first := (1 - math.Pow((time.Minute-shortest).Minutes(), 2)/(2*(longest-shortest).Minutes())) / mean
	most := map[string]int{}
	for minute, asked := range m.asked {
		at := time.Duration(minute) * time.Minute
		kind, limit := "quiet", bound(n/((life+backdated)/10).Minutes())
		switch {
		case minute == 0, at >= m.power && at < m.power+20*time.Minute:
			continue // all are switched on in this second, and ask at once; the waits of the first failures are short
		case m.settling(at):
			kind, limit = "away", bound(n/mean)
			for _, a := range m.away {
				if at >= a.to.Truncate(time.Minute) && at <= a.to+again {
					kind, limit = "back", int(n*first+5*math.Sqrt(n*first*(1-first)))
				}
			}
		}
		if most[kind] = max(most[kind], asked); asked > limit {
			m.Errorf("%d requests in the minute after %s (%s); expected at most %d", asked, at, kind, limit)
		}
	}
	m.Logf("most requests in a minute: %v", most)
}

func (m *month) ends(fleet []*boxed) {
	m.Helper()
	issued, early, on, lapses := 0, 0, time.Duration(0), 0
	for i, g := range fleet {
		issued, early, on, lapses = issued+g.issued, early+g.early, on+g.on, lapses+g.lapses
		if g.early > int(g.forward.Load()) {
			m.Errorf("gateway %d renewed %d times before its time; its clock was set forward %d times", i, g.early, g.forward.Load())
		}
		if g.running && m.since()-g.started > told+m.glance+again && (g.kept == nil || time.Now().After(g.kept.NotAfter) || g.kept.Gateway != "new CA") {
			m.Errorf("gateway %d ends the month with %+v", i, g.kept)
		}
	}
	rate := float64(issued) / (on.Hours() / 24)
	m.Logf("%d certificates, %d of them early, %.2f for each day that a gateway was on; %d ended in vain", issued, early, rate, lapses)
	if lapses < len(fleet) { // the day without an issuer, and the one without power
		m.Errorf("%d certificates ended; this month was too easy", lapses)
	}
}

// boxed is a gateway with its state, over all its starts. Its fields are those of its one goroutine, but for the clock's.
type boxed struct {
	*month
	r, clock *rand.Rand // of the loop and all that befalls the gateway; of its clock
	skew     atomic.Int64
	forward  atomic.Int32 // how often the clock was set forward

	running bool
	started time.Duration // of the month: the last start
	stopped time.Duration // and the end before it
	back    time.Duration // the last start after more than a restart
	kept    *Identity
	asks    time.Time // the end of the last request of this start
	on      time.Duration
	issued  int
	early   int
	lapses  int
}

// live starts the gateway again and again.
func (g *boxed) live(ctx context.Context) {
	for ctx.Err() == nil {
		on := time.Duration(g.r.ExpFloat64() * float64(4*24*time.Hour))
		off := time.Second + jitter(g.r, restart-time.Second)
		if g.r.IntN(6) == 0 {
			off = jitter(g.r, 3*24*time.Hour)
		}
		if now := g.since(); now < g.power && now+on+off > g.cut {
			on, off = max(0, g.cut-now), 0
		}
		g.start(ctx, on)
		if now := g.since(); now >= g.cut && now < g.power {
			off = g.power - now
		}
		_ = sleep(ctx, off)
	}
}

// start is the time from switching a gateway on to switching it off.
func (g *boxed) start(ctx context.Context, on time.Duration) {
	g.started, g.running, g.asks = g.since(), true, time.Time{}
	if g.started-g.stopped > restart {
		g.back = g.started
	}
	within, cancel := context.WithTimeout(ctx, on)
	defer cancel()
	var setting sync.WaitGroup
	setting.Go(func() { g.setClock(within) })
	loop := &renewal{load: g.load, enrol: g.enrol, log: slog.New(slog.DiscardHandler), r: g.r, now: g.now, glance: g.glance, trouble: func(error) {}}
	if err := loop.run(within, func(*Identity) {}); !errors.Is(err, within.Err()) {
		g.fail("the loop ended: %v", err)
	}
	setting.Wait()
	g.running = ctx.Err() != nil // on to the end
	g.stopped = g.since()
	g.on += g.stopped - g.started
}

// setClock is what befalls the clock. It may be wrong from the start: then the hospital tells the time soon, and no wall clock counts any more. Or it
// is right, nobody tells the time, and somebody sets it.
func (g *boxed) setClock(ctx context.Context) {
	if g.skew.Load() > 0 {
		g.forward.Add(1) // as it was left
	} else if g.clock.IntN(6) == 0 {
		g.setWrong()
	}
	if g.skew.Load() != 0 {
		if sleep(ctx, jitter(g.clock, told)) == nil {
			g.setRight()
		}
		return
	}
	for sleep(ctx, time.Duration(g.clock.ExpFloat64()*float64(6*24*time.Hour))) == nil {
		g.setWrong()
		if sleep(ctx, jitter(g.clock, 12*time.Hour)) != nil {
			return
		}
		g.setRight()
	}
}

func (g *boxed) setWrong() {
	by := jitter(g.clock, 400*24*time.Hour)
	if g.clock.IntN(2) == 0 {
		by = -by
	} else {
		g.forward.Add(1)
	}
	g.skew.Store(int64(by))
}

// setRight may be a step forward, too.
func (g *boxed) setRight() {
	if g.skew.Swap(0) < 0 {
		g.forward.Add(1)
	}
}

// now is the wall clock, but never before the own certificate.
func (g *boxed) now() time.Time {
	now := time.Now().Add(time.Duration(g.skew.Load()))
	if g.kept != nil && now.Before(g.kept.NotBefore) {
		return g.kept.NotBefore
	}
	return now
}

func (g *boxed) load(context.Context) (*Identity, error) {
	if g.kept == nil {
		return nil, ErrNone
	}
	return g.kept, nil
}

// enrol is a request to the issuer, and its answer.
func (g *boxed) enrol(ctx context.Context) (*Identity, error) {
	if !g.asks.IsZero() && time.Since(g.asks) < shortest {
		g.fail("asked again %s after the last answer", time.Since(g.asks))
	}
	defer func() { g.asks = time.Now() }()
	g.mu.Lock()
	g.asked[int(g.since()/time.Minute)]++
	g.mu.Unlock()
	if a := g.absent(); a != nil {
		if a.silent {
			_ = sleep(ctx, requestTimeout)
		}
		return nil, errors.New("no answer")
	}
	if !g.settling(g.since()) && g.r.IntN(50) == 0 {
		return nil, errors.New("500 Internal Server Error")
	}
	if err := sleep(ctx, jitter(g.r, answering)); err != nil {
		return nil, err
	}
	g.judge()
	g.issued++
	g.kept = &Identity{Gateway: "old CA", NotBefore: time.Now().Add(-backdated), NotAfter: time.Now().Add(life)}
	if g.since() >= g.rotated {
		g.kept.Gateway = "new CA"
	}
	return g.kept, nil
}

// judge holds the instant of a renewal against the certificate before.
func (g *boxed) judge() {
	if g.kept == nil {
		return
	}
	if time.Since(g.kept.NotBefore) < (life+backdated)/2 {
		g.early++
	}
	lapsed := time.Since(g.kept.NotAfter)
	if lapsed <= 0 {
		return
	}
	g.lapses++
	now := g.since()
	if now-g.started <= told+g.glance+again { // it ended while the gateway was off
		return
	}
	for _, a := range g.away {
		// It may not have begun to renew before the absence, for it was off.
		if (a.lapsing || g.back+told+g.glance > a.from) && now >= a.to && now <= a.to+again+answering {
			return
		}
	}
	g.fail("after %s, on since %s: a certificate had ended %s before the next one", now, g.started, lapsed)
}
