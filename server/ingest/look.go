package ingest

import (
	"context"
	"errors"
	"time"

	"wardlink/server/registry"
)

// sight is what a server has seen of the registry.
type sight struct {
	revision int64     // by which every session was judged; -1: by none
	at       time.Time // when the latest questions began that were all answered: what was so before, this server has heeded
}

// question is how long one question of a look may take: one that hangs is asked again, on another connection, before sessions end for it.
func (l Limits) question() time.Duration { return min(l.Ask, QuestionTime(l.Blind)) }

// leastQuestion is what a busy registry may take for an answer, however short the time is that sessions may live on without it.
const leastQuestion = time.Second

// QuestionTime is how long a question of a look may take where sessions live on for blind without the registry: an eighth of that, and a second where
// blind has room for three of those.
func QuestionTime(blind time.Duration) time.Duration {
	return max(blind/8, min(leastQuestion, blind/3))
}

// until is when questions that begin now must all be answered: when the sight is as old as it may be, or after one question's time where that
// is later. However many of them hang, or answer at their last moment, the end of blind sessions is not put off.
func (l Limits) until(seen sight, now time.Time) time.Time {
	if end := now.Add(l.question()); end.After(seen.at.Add(l.Blind)) {
		return end
	}
	return seen.at.Add(l.Blind)
}

// look asks whether anything has changed, ends the sessions that are over, and gives what it has seen. The former revision counts until all
// sessions were judged by the next.
func (s *Server) look(ctx context.Context, seen sight) (sight, error) {
	begun := time.Now()
	within, cancel := context.WithDeadline(ctx, s.limits.until(seen, begun))
	defer cancel()
	asked, done := context.WithTimeout(within, s.limits.question())
	revision, err := s.registry.Revision(asked)
	done()
	switch {
	case err != nil:
		return seen, err
	case revision != seen.revision:
		return s.judgeAll(ctx, seen, revision, begun)
	}
	if err := s.fence(within); err != nil {
		return seen, err
	}
	return sight{revision, begun}, nil
}

// judgeAll judges every session by a revision that was asked for at begun. Twenty thousand of them take seconds, so it goes by steps, and each
// that is done counts as sight.
func (s *Server) judgeAll(ctx context.Context, seen sight, revision int64, begun time.Time) (sight, error) {
	for all := s.all(); ; begun = time.Now() {
		judged, err := s.judgeSome(ctx, s.limits.until(seen, begun), all)
		if err != nil {
			return seen, err
		}
		seen.at = begun
		if all = all[judged:]; len(all) == 0 {
			seen.revision = revision
			return seen, nil
		}
		s.heedClock(time.Now())
	}
}

// judgeSome ends the sessions that are cut off or passed elsewhere, since whoever is may not have the time that judging takes, and then judges as many of the
// sessions as one poll has time for, but one at least.
func (s *Server) judgeSome(ctx context.Context, end time.Time, all []*session) (judged int, err error) {
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	if err := s.cutOff(ctx); err != nil {
		return 0, err
	}
	if err := s.fence(ctx); err != nil {
		return 0, err
	}
	next := time.Now().Add(s.limits.Poll) // from here: where the two questions take as long as a poll, each step would judge one session
	for judged < len(all) && (judged == 0 || time.Now().Before(next)) {
		if err := s.judge(ctx, all[judged]); err != nil {
			return judged, err
		}
		judged++
	}
	return judged, nil
}

// cutOff cuts the sessions of gateways and keys that are cut off: few, and with one question.
func (s *Server) cutOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.limits.question())
	defer cancel()
	list, err := s.registry.CutOff(ctx)
	if err != nil {
		return err
	}
	for _, cut := range list {
		s.mu.Lock()
		c := s.sessions[cut.Gateway]
		s.mu.Unlock()
		if c != nil && (cut.Key == [32]byte{} || cut.Key == c.id.key) {
			s.log.Warn("gateway is cut off; its session ends", "gateway", cut.Gateway)
			c.stop(endOfCut(cut), true)
		}
	}
	return nil
}

// endOfCut is the end of a session that may not go on.
func endOfCut(cut registry.CutOff) string {
	switch {
	case cut.Key != [32]byte{}:
		return endReplaced
	case cut.State == registry.Suspended:
		return endSuspended
	case cut.State == registry.Decommissioned:
		return endEnded
	}
	return endRevoked
}

// endFor is the end of a session that the registry no longer admits for that reason.
func endFor(err error) string {
	held, retired, window := (*registry.HeldError)(nil), (*registry.RetiredError)(nil), (*registry.WindowError)(nil)
	switch {
	case errors.As(err, &held):
		return endOfCut(registry.CutOff{State: held.State})
	case errors.As(err, &retired):
		return endReplaced
	case errors.As(err, &window):
		return endWindow
	}
	return endRevoked
}

// judge asks what one session's gateway may do now. An error means that nobody knows.
func (s *Server) judge(ctx context.Context, c *session) error {
	ctx, cancel := context.WithTimeout(ctx, s.limits.question())
	defer cancel()
	adm, err := s.registry.AdmitKey(ctx, c.id.gateway, c.id.key)
	switch {
	case err == nil:
		c.mu.Lock()
		c.admit(adm)
		c.judged++
		c.mu.Unlock()
	case denied(err):
		s.log.Warn("gateway is no longer admitted; its session is cut", "gateway", c.id.gateway)
		c.stop(endFor(err), true)
	default:
		return err
	}
	return nil
}
