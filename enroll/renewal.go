package enroll

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"
)

// The waits of the renewal loop. Nothing in it waits less than a second, so that no fault makes it hot.
const (
	shortest     = time.Second
	longest      = 5 * time.Minute
	waitingShort = 2 * time.Second // between two polls of a gateway that waits for approval
	waitingLong  = 10 * time.Second
	waitingSaid  = time.Hour       // between two log lines that say so
	hurried      = 3 * time.Second // between two renewals that Hurry asked for
	glance       = time.Minute     // between two looks at the wall clock: it may have been set, or the machine asleep
)

// ExpiredGrace is how long after its end a certificate may still be shown: a hospital may admit it so long while its CA cannot issue
// another one, and no longer.
const ExpiredGrace = 72 * time.Hour

// NextRenewal is when to renew: half of the certificate's life, and up to a tenth more, so that a fleet switched on together does not
// renew together. r may be nil.
func NextRenewal(id *Identity, r *rand.Rand) time.Time {
	life := id.NotAfter.Sub(id.NotBefore)
	return id.NotBefore.Add(life/2 + jitter(r, life/10))
}

// jitter is uniform in [0, d).
func jitter(r *rand.Rand, d time.Duration) time.Duration {
	switch {
	case d <= 0:
		return 0
	case r == nil:
		return rand.N(d)
	}
	return time.Duration(r.Int64N(int64(d)))
}

// Run keeps this gateway enrolled: it loads or obtains the certificate, renews it at half its life, for ever, and tells onIdentity
// of each. It gives up only when ctx ends; failures are logged, told to onTrouble (which may be nil) and repeated with full jitter
// between one second and five minutes, and while an operator's approval is awaited (a *WaitingError) after two to ten seconds.
// Both functions are called from one goroutine and must not block for long. Hurry cuts the wait for the next renewal short.
func (e *Enroller) Run(ctx context.Context, onIdentity func(*Identity), onTrouble func(error)) error {
	if onTrouble == nil {
		onTrouble = func(error) {}
	}
	return (&renewal{load: e.Load, enrol: e.Enroll, log: e.cfg.Log, trouble: onTrouble, hurry: e.hurry, now: e.cfg.Now, glance: glance}).run(ctx, onIdentity)
}

// Hurry makes Run renew soon instead of at half the certificate's life: for when the hospital does not admit the certificate. Asking
// for another one brings it, or the reason why there is none. It never blocks, and makes nothing hot: three seconds lie between two.
func (e *Enroller) Hurry() {
	select {
	case e.hurry <- struct{}{}:
	default:
	}
}

// renewal is the loop, apart from TPM and network.
type renewal struct {
	load, enrol func(context.Context) (*Identity, error)
	trouble     func(error)
	log         *slog.Logger
	r           *rand.Rand // nil: the global one
	hurry       <-chan struct{}
	now         func() time.Time // nil: time.Now
	glance      time.Duration    // between two looks at it
}

func (l *renewal) present() time.Time {
	if l.now == nil {
		return time.Now()
	}
	return l.now()
}

func (l *renewal) run(ctx context.Context, onIdentity func(*Identity)) error {
	id, err := l.load(ctx)
	switch {
	case err == nil:
		onIdentity(id)
		due := NextRenewal(id, l.r)
		// A clock that is behind must not put renewal off for longer than a fresh certificate would.
		if err := l.until(ctx, due, min(due.Sub(l.present()), id.NotAfter.Sub(id.NotBefore))); err != nil {
			return err
		}
	case !errors.Is(err, ErrNone) && ctx.Err() == nil:
		l.log.Error("the kept identity cannot be used", "error", err)
		l.trouble(err)
	}
	var said time.Time
	for failures := 0; ; {
		id, err := l.enrol(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			failures = 0
			l.log.Info("enrolled", "gateway", id.Gateway, "not_after", id.NotAfter.UTC().Format(time.RFC3339))
			onIdentity(id)
			select {
			case <-l.hurry: // it was about the certificate before
			default:
			}
			due := NextRenewal(id, l.r)
			if err := l.until(ctx, due, max(shortest, due.Sub(id.NotBefore))); err != nil {
				return err
			}
			continue
		}
		l.trouble(err)
		pause := l.pause(err, failures)
		var waiting *WaitingError
		if errors.As(err, &waiting) {
			failures = 0
			if time.Since(said) > waitingSaid {
				said = time.Now()
				l.log.Info("waiting for an operator's approval", "fingerprint", waiting.Fingerprint)
			}
		} else {
			failures++
			l.log.Warn("enrolment failed", "error", err, "again_in", pause)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// pause is how long to wait after a failure that came after so many others.
func (l *renewal) pause(err error, failures int) time.Duration {
	var waiting *WaitingError
	if errors.As(err, &waiting) {
		return waitingShort + jitter(l.r, waitingLong-waitingShort)
	}
	ceiling := longest
	if failures < 8 { // 2^8 seconds are still less than five minutes
		ceiling = shortest << (failures + 1)
	}
	return shortest + jitter(l.r, ceiling-shortest)
}

// until waits for the wall clock to reach due or for after to pass, whichever comes first. How far a wall clock is ahead when the wait begins
// does not count, or renewal would be hot: only that it is set, or that the machine slept, is news. Hurry leaves at most a short wait.
func (l *renewal) until(ctx context.Context, due time.Time, after time.Duration) error {
	begun := time.Now()
	// Neither has a monotonic reading, so this compares wall clocks.
	if ahead := l.present().Round(0).Add(after); ahead.After(due) {
		due = ahead
	}
	timer := time.NewTimer(l.glance)
	defer timer.Stop()
	for {
		left := after - time.Since(begun)
		if left <= 0 || !l.present().Before(due) {
			return ctx.Err()
		}
		timer.Reset(min(left, l.glance))
		select {
		case <-timer.C:
		case <-l.hurry:
			after = min(after, hurried)
		case <-ctx.Done():
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
