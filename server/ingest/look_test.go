package ingest

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestBlindServerDropsEverything(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 0)
		b.reg.change(func() { b.reg.err = errors.New("database is gone") })
		if took, why := b.lives(c); took < 29*time.Second || took > 31*time.Second || why != endBlind {
			t.Errorf("cut after %s (%s)", took, why)
		}
	})
}

func TestShortBlindnessIsForgiven(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 0)
		b.reg.change(func() { b.reg.err = errors.New("database is gone") })
		time.Sleep(20 * time.Second)
		b.reg.change(func() { b.reg.err = nil })
		time.Sleep(20 * time.Second)
		c.send([]byte{0xc0, 0})
		c.expect(kindPingresp)
	})
}

// TestRevokedNeedNotWaitForTheOthers: judging thousands of sessions takes seconds, more than one question to the registry may; who is
// revoked is cut before, and nobody is cut for it.
func TestRevokedNeedNotWaitForTheOthers(t *testing.T) {
	inBubble(t, Limits{Blind: 5 * time.Second}, func(t *testing.T, b *pipeBench) {
		var others []*client
		for i := range 40 {
			name := fmt.Sprintf("other-%d", i)
			b.reg.change(func() { b.reg.lanes[name] = 0x0f })
			others = append(others, b.session(name, 10*time.Hour, 0))
		}
		c := b.session("gw-1", 10*time.Hour, 0)
		time.Sleep(time.Second)
		b.reg.change(func() { b.reg.revoked["gw-1"], b.reg.takes["AdmitKey"] = true, time.Second/2 })
		if took, why := b.lives(c); took > time.Second || why != endRevoked {
			t.Errorf("cut after %s (%s)", took, why)
		}
		time.Sleep(time.Minute)
		b.reg.change(func() { clear(b.reg.takes) })
		for _, o := range others {
			o.send([]byte{0xc0, 0})
			o.expect(kindPingresp)
		}
	})
}

// TestRevokedWhileOthersAreJudged: who is revoked, or comes back to another node, while each answer takes its time, is cut within two polls and
// a few of those answers, and need not wait until all are judged.
func TestRevokedWhileOthersAreJudged(t *testing.T) {
	inBubble(t, Limits{Blind: 5 * time.Second}, func(t *testing.T, b *pipeBench) {
		shared := b.share()
		for i := range 100 {
			name := fmt.Sprintf("other-%d", i)
			b.reg.change(func() { b.reg.lanes[name] = 0x0f })
			b.session(name, 10*time.Hour, 0)
		}
		c, other := b.session("gw-1", 10*time.Hour, 0), b.session("gw-2", 10*time.Hour, 0)
		time.Sleep(time.Second)
		const takes = time.Second / 2
		b.reg.change(func() { b.reg.takes["AdmitKey"], b.reg.takes["CutOff"] = takes, takes })
		time.Sleep(4 * time.Second)
		b.reg.change(func() { b.reg.revoked["gw-1"] = true })
		if took, why := b.lives(c); took > time.Second+3*takes || why != endRevoked {
			t.Errorf("cut after %s (%s)", took, why)
		}
		if _, err := shared.Bump(t.Context(), "gw-2"); err != nil {
			t.Fatal(err)
		}
		if took, why := b.lives(other); took > time.Second+3*takes || why != endTakeover {
			t.Errorf("cut after %s (%s)", took, why)
		}
		// One failure then, though all of this took longer than a blind server's sessions last, ends nobody.
		b.reg.change(func() { b.reg.err = errors.New("a connection is lost") })
		time.Sleep(time.Second)
		b.reg.change(func() { b.reg.err = nil })
		time.Sleep(time.Second)
		b.srv.mu.Lock()
		defer b.srv.mu.Unlock()
		if len(b.srv.sessions) != 100 {
			t.Errorf("%d others have sessions, expected 100", len(b.srv.sessions))
		}
	})
}

// TestJudgingDoesNotCrawl: where the questions of a step take longer than a poll, sessions are judged by the hundreds in each step all the same; and
// one whose validity ends meanwhile does not wait until all are.
func TestJudgingDoesNotCrawl(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		b.share()
		const others = 200
		for i := range others {
			name := fmt.Sprintf("other-%d", i)
			b.reg.change(func() { b.reg.lanes[name] = 0x0f })
			b.session(name, 10*time.Hour, 0)
		}
		time.Sleep(time.Second)
		judged := func() (n int) {
			b.srv.mu.Lock()
			defer b.srv.mu.Unlock()
			for _, c := range b.srv.sessions {
				c.mu.Lock()
				n += c.judged
				c.mu.Unlock()
			}
			return n
		}
		before := judged()
		b.reg.change(func() { b.reg.takes["CutOff"], b.reg.takes["Passed"] = 400*time.Millisecond, 400*time.Millisecond })
		time.Sleep(3 * time.Second)
		if n := judged() - before; n < others {
			t.Errorf("%d of %d sessions were judged within three seconds", n, others)
		}
		b.reg.change(func() { b.reg.until = map[string]time.Time{"gw-1": time.Now().Add(3 * time.Second)} })
		short := b.session("gw-1", 10*time.Hour, 0)
		b.reg.change(func() { b.reg.takes["AdmitKey"] = 100 * time.Millisecond })
		if took, why := b.lives(short); took > 5*time.Second || why != endWindow {
			t.Errorf("cut after %s (%s)", took, why)
		}
	})
}

// TestAHungQuestionKeepsTheBound: whichever question of a look hangs, and however late the others answer, also when it begins to hang while sessions
// are judged, they end as soon as they would had there been no answer at all.
func TestAHungQuestionKeepsTheBound(t *testing.T) {
	for _, blind := range []time.Duration{24 * time.Second, 3 * time.Second} {
		t.Run(blind.String(), func(t *testing.T) { hungQuestions(t, blind) })
	}
}

func hungQuestions(t *testing.T, blind time.Duration) {
	var (
		question = QuestionTime(blind)
		bound    = blind + question + 500*time.Millisecond // from the last answer: a look that fails, and one more that begins
		late     = question - time.Millisecond
		many     = question * 8 / 10
	)
	questions := []string{"Revision", "CutOff", "AdmitKey", "Passed"}
	for _, hung := range questions {
		for _, c := range []struct {
			others, after time.Duration
			judging       bool
		}{{0, 0, true}, {late, 0, true}, {late / 2, 0, true}, {many, 0, true}, {many, 0, false}, {late, question * 5 / 3, true}} {
			if hung == "Revision" && c.after > 0 || (hung == "CutOff" || hung == "AdmitKey") && !c.judging {
				continue // the revision is not asked for before all are judged, and until then the others' answers are sight
			}
			t.Run(fmt.Sprintf("%s/%s/%s/%v", hung, c.others, c.after, c.judging), func(t *testing.T) {
				inBubble(t, Limits{Blind: blind}, func(t *testing.T, b *pipeBench) {
					b.share()
					for i := range 4 {
						name := fmt.Sprintf("other-%d", i)
						b.reg.change(func() { b.reg.lanes[name] = 0x0f })
						b.session(name, 10*time.Hour, 0)
					}
					gw := b.session("gw-1", 10*time.Hour, 0)
					time.Sleep(time.Minute + 100*time.Millisecond) // between two polls: at one of them the question might have its answer, and slow ones after it are sight
					b.reg.change(func() {
						for _, one := range questions {
							b.reg.takes[one] = c.others
						}
					})
					time.Sleep(c.after)
					b.reg.change(func() {
						if b.reg.takes[hung] = time.Hour; !c.judging {
							b.reg.revision -= 2
						}
					})
					took, why := b.lives(gw)
					if took > bound || why != endBlind {
						t.Errorf("cut after %s (%s), expected %s at most", took, why, bound)
					}
					if least := blind - time.Second; c.others == 0 && took < least {
						t.Errorf("cut after %s, expected %s at least", took, least)
					}
				})
			})
		}
	}
}
