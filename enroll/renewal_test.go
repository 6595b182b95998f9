package enroll

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const life = 24 * time.Hour

// script is an enrolment that does what each test says, and notes when.
type script struct {
	t     *testing.T
	begun time.Time
	at    []time.Duration // since begun, of each enrolment
	seen  int             // identities told
	told  []error
	hurry chan struct{}
	now   func() time.Time // nil: the bubble's
	seed  uint64
}

// fresh is a certificate as a server whose clock agrees would issue it.
func fresh() *Identity {
	return &Identity{Gateway: "gw-1", NotBefore: time.Now(), NotAfter: time.Now().Add(life)}
}

// run lets the loop live for d of simulated time.
func (s *script) run(d time.Duration, load func() (*Identity, error), enrol func(n int) (*Identity, error)) {
	s.t.Helper()
	s.begun = time.Now()
	ctx, cancel := context.WithTimeout(s.t.Context(), d)
	defer cancel()
	loop := &renewal{
		load: func(context.Context) (*Identity, error) { return load() },
		enrol: func(context.Context) (*Identity, error) {
			s.at = append(s.at, time.Since(s.begun))
			return enrol(len(s.at) - 1)
		},
		trouble: func(err error) { s.told = append(s.told, err) },
		log:     slog.New(slog.DiscardHandler),
		r:       rand.New(rand.NewPCG(1, s.seed)),
		hurry:   s.hurry,
		now:     s.now,
		glance:  glance,
	}
	if err := loop.run(ctx, func(*Identity) { s.seen++ }); !errors.Is(err, context.DeadlineExceeded) {
		s.t.Fatalf("the loop ended: %v", err)
	}
}

func none() (*Identity, error) { return nil, ErrNone }

func TestRenewsAtHalfLifeForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t}
		s.run(30*24*time.Hour, none, func(int) (*Identity, error) { return fresh(), nil })
		if len(s.at) < 50 || len(s.at) > 61 || s.seen != len(s.at) || len(s.told) != 0 {
			t.Fatalf("%d enrolments, %d identities, troubles %v in 30 days", len(s.at), s.seen, s.told)
		}
		for i := 1; i < len(s.at); i++ {
			if gap := s.at[i] - s.at[i-1]; gap < life/2 || gap > life*6/10 {
				t.Errorf("renewal %d after %v; expected a half to six tenths of a day", i, gap)
			}
		}
	})
}

// TestNextRequest: when a gateway that starts with a kept certificate asks for the next one, and when it has it. The kept one is told at once, whatever it is.
func TestNextRequest(t *testing.T) {
	const half, most, year = (life + backdated) / 2, latest + time.Second, 365 * 24 * time.Hour
	always := func(by time.Duration) func(time.Duration) time.Duration {
		return func(time.Duration) time.Duration { return by }
	}
	after := func(at, by time.Duration) func(time.Duration) time.Duration {
		return func(since time.Duration) time.Duration {
			if since < at {
				return 0
			}
			return by
		}
	}
	for name, row := range map[string]struct {
		old      time.Duration                           // since the certificate was issued
		clock    func(since time.Duration) time.Duration // how far it is ahead; nil: it is right. It is never before the certificate's begin
		away     time.Duration                           // until then no request is answered
		min, max time.Duration                           // of the first request, since the start
		has      time.Duration                           // the new certificate is there by then; 0: with the first request
	}{
		"issued just now":            {min: half - backdated, max: most - backdated},
		"half its life is over":      {old: half - backdated, max: most - half},
		"it is about to end":         {old: life - time.Second},
		"it has ended":               {old: life + time.Second},
		"a year offline":             {old: year},
		"set forward":                {clock: after(time.Hour, year), min: time.Hour, max: time.Hour + glance},
		"set back":                   {clock: after(time.Hour, -year), min: half - backdated, max: most - backdated},
		"set back by an hour":        {clock: after(time.Hour, -time.Hour), min: half - backdated, max: most - backdated},
		"ahead at the start":         {clock: always(year)},
		"behind at the start":        {clock: always(-year), min: half, max: most},
		"behind until it is told":    {old: 20 * time.Hour, clock: func(since time.Duration) time.Duration { return after(told, year)(since) - year }, min: told, max: told + glance},
		"an hour behind":             {old: time.Hour, clock: always(-time.Hour), min: half - backdated, max: most - backdated},
		"the issuer away for a day":  {old: 2 * time.Hour, away: 36 * time.Hour, min: half - backdated - 2*time.Hour, max: most - backdated - 2*time.Hour, has: 36*time.Hour + longest},
		"away, and it ended":         {old: year, away: 24 * time.Hour, has: 24*time.Hour + longest},
		"away for a minute at start": {old: year, away: time.Minute, has: 3 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(3) {
				synctest.Test(t, func(t *testing.T) {
					s := &script{t: t, seed: seed}
					start := time.Now()
					kept := &Identity{NotBefore: start.Add(-row.old - backdated), NotAfter: start.Add(life - row.old)}
					if row.clock != nil {
						s.now = func() time.Time {
							now := time.Now().Add(row.clock(time.Since(start)))
							if now.Before(kept.NotBefore) {
								return kept.NotBefore
							}
							return now
						}
					}
					var has time.Duration
					there := false
					s.run(40*time.Hour, func() (*Identity, error) { return kept, nil }, func(int) (*Identity, error) {
						if s.seen != 1 && !there {
							t.Errorf("asked when %d identities were told", s.seen)
						}
						if time.Since(start) < row.away {
							return nil, errors.New("no answer")
						}
						if !there {
							there, has = true, time.Since(start)
						}
						return fresh(), nil
					})
					if len(s.at) == 0 || s.at[0] < row.min || s.at[0] > row.max {
						t.Fatalf("asked at %v; expected the first between %s and %s", s.at, row.min, row.max)
					}
					if has < row.away || has > max(row.has, s.at[0]) {
						t.Errorf("the new one is there after %s; expected %s to %s", has, row.away, row.has)
					}
				})
			}
		})
	}
}

func TestFailuresBackOffAndNeverEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t}
		down := errors.New("connection refused")
		s.run(24*time.Hour, none, func(int) (*Identity, error) { return nil, down })
		// Full jitter up to five minutes has a mean of two and a half: about 576 attempts a day.
		if len(s.at) < 400 || len(s.at) > 800 || len(s.told) != len(s.at) {
			t.Errorf("%d attempts, %d troubles in a day", len(s.at), len(s.told))
		}
		for i := 1; i < len(s.at); i++ {
			if gap := s.at[i] - s.at[i-1]; gap < shortest || gap > longest {
				t.Errorf("attempt %d after %v", i, gap)
			}
		}
		if s.at[3] > 20*time.Second {
			t.Errorf("the fourth attempt comes after %v; a short fault should heal fast", s.at[3])
		}
	})
}

func TestWaitingIsPolled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t}
		s.run(10*time.Minute, none, func(n int) (*Identity, error) {
			if n < 20 {
				return nil, &WaitingError{Fingerprint: "AAAA-BBBB-CCCC-DDDD"}
			}
			return fresh(), nil
		})
		if len(s.at) != 21 || s.seen != 1 {
			t.Fatalf("%d attempts, %d identities", len(s.at), s.seen)
		}
		for i := 1; i < len(s.at); i++ {
			if gap := s.at[i] - s.at[i-1]; gap < waitingShort || gap > waitingLong {
				t.Errorf("poll %d after %v", i, gap)
			}
		}
	})
}

// A wrong wall clock here, or at the server, makes renewal neither hot nor late.
func TestWrongClocksAreHarmless(t *testing.T) {
	for name, skew := range map[string]time.Duration{"server a year behind": -365 * life, "server a year ahead": 365 * life,
		"server an hour behind": -time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{t: t}
			s.run(10*24*time.Hour, none, func(int) (*Identity, error) {
				now := time.Now().Add(skew)
				return &Identity{NotBefore: now, NotAfter: now.Add(life)}, nil
			})
			if len(s.at) < 16 || len(s.at) > 23 {
				t.Errorf("%s: %d enrolments in ten days; expected about 18", name, len(s.at))
			}
		})
	}
	for _, ahead := range []time.Duration{11 * time.Hour, 12*time.Hour + 30*time.Minute, -time.Hour, 365 * life} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{t: t, now: func() time.Time { return time.Now().Add(ahead) }}
			s.run(10*24*time.Hour, none, func(int) (*Identity, error) { return fresh(), nil })
			if len(s.at) < 16 || len(s.at) > 23 {
				t.Errorf("the gateway is ahead by %s: %d enrolments in ten days; expected about 18", ahead, len(s.at))
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t} // a broken server: certificates without life
		s.run(time.Minute, none, func(int) (*Identity, error) { return &Identity{NotBefore: time.Now(), NotAfter: time.Now()}, nil })
		if len(s.at) > 61 {
			t.Errorf("%d enrolments in a minute", len(s.at))
		}
	})
}

func TestUnusableStateIsToldAndRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t}
		lost := errors.New("keys are lost")
		s.run(time.Minute, func() (*Identity, error) { return nil, lost }, func(int) (*Identity, error) { return nil, lost })
		if s.seen != 0 || len(s.told) != len(s.at)+1 || !errors.Is(s.told[0], lost) {
			t.Errorf("told %v, enrolled at %v", s.told, s.at)
		}
	})
}

// TestHurry: a certificate that the hospital does not admit is renewed soon, and however often that is asked, never hot.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t, hurry: make(chan struct{}, 1)}
		time.AfterFunc(time.Hour, func() { s.hurry <- struct{}{} })
		s.run(2*time.Hour, none, func(int) (*Identity, error) { return fresh(), nil })
		if len(s.at) != 2 || s.at[1] != time.Hour {
			t.Errorf("enrolled at %v; expected at once when hurried", s.at)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		e := &Enroller{hurry: make(chan struct{}, 1)}
		s := &script{t: t, hurry: e.hurry}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var asking sync.WaitGroup
		defer asking.Wait()
		asking.Go(func() {
			for ctx.Err() == nil {
				e.Hurry()
				time.Sleep(10 * time.Millisecond)
			}
		})
		s.run(time.Minute, none, func(int) (*Identity, error) { return fresh(), nil })
		if len(s.at) < 18 || len(s.at) > 21 {
			t.Errorf("enrolled at %v; expected every three seconds", s.at)
		}
	})
}

// TestRevokedBacksOff: a revoked gateway goes on asking, ever more seldom, so that it is back when the hospital takes it back.
func TestRevokedBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t, hurry: make(chan struct{}, 1)}
		s.run(24*time.Hour, none, func(int) (*Identity, error) { return nil, &CutOffError{What: "revoked", Reason: "stolen"} })
		var revoked *CutOffError
		if len(s.at) < 24*12 || len(s.at) > 24*60 || !errors.As(s.told[0], &revoked) {
			t.Errorf("%d attempts in a day, told %v", len(s.at), s.told[0])
		}
	})
}

// TestExpiryShowsWithTheTime: at boot the clock is at 1970, or at a floor from before the certificate's end; renewal is not late once the
// time is known, and goes on by the monotonic clock whatever the wall clock shows.
func TestExpiryShowsWithTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t}
		server := time.Now()
		kept := &Identity{Gateway: "gw-1", NotBefore: server.Add(-8 * life), NotAfter: server.Add(-7 * life)} // off for a week
		known := time.Now().Add(10 * time.Minute)
		s.now = func() time.Time {
			if time.Now().Before(known) {
				return kept.NotBefore // the floor
			}
			return time.Now()
		}
		s.run(24*time.Hour, func() (*Identity, error) { return kept, nil }, func(int) (*Identity, error) { return fresh(), nil })
		if len(s.at) < 2 || s.at[0] < 10*time.Minute || s.at[0] > 12*time.Minute {
			t.Errorf("enrolled at %v; expected within a glance of the time being known, and then at half life", s.at)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t} // the time is never known
		s.now = func() time.Time { return time.Unix(60, 0) }
		s.run(10*24*time.Hour, none, func(int) (*Identity, error) { return fresh(), nil })
		if len(s.at) < 16 || len(s.at) > 23 {
			t.Errorf("%d enrolments in ten days at 1970; expected about 18", len(s.at))
		}
	})
}
