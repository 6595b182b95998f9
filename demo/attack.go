package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wardlink/enroll"
	"wardlink/internal/child"
)

// Refusal is one thing that an attacker tried, and what the log says about it.
type Refusal struct {
	Case    string `json:"case"`
	Refused bool   `json:"refused"` // by the attacker's own account
	Answer  string `json:"answer"`  // what the attacker got
	Leaf    uint64 `json:"leaf"`    // index of the refusal in the verified log; 0, which is the server's first start, when it is not there
	Actor   string `json:"actor"`   // as the leaf has it, like the rest
	Peer    string `json:"peer"`
	Target  string `json:"target,omitempty"`
	Reason  string `json:"reason"`
}

// trial is one attack, and by what its refusal is known in the log.
type trial struct {
	name    string // as a person reads it
	kind    string // type of the event
	actor   string
	target  string // "" is any
	reason  string
	peer    string // "" is any
	attempt func(ctx context.Context, a *attacker) error
}

const (
	mallory       = "gw-mallory" // the gateway that was carried away
	revokedReason = "carried away from the ward"
)

func spiffeGateway(name string) string { return "spiffe://" + trustDomain + "/gateway/" + name }

// trials are the attacks, in their order. Between the second and the third the operator revokes the gateway.
func (t *theatre) trials() (before, after []trial) {
	victim := t.fleet[0].name
	before = []trial{
		{
			name: "certificate of a foreign CA", kind: "refused.peers", actor: "peer", peer: "127.0.0.0/24", reason: "client certificate does not verify",
			attempt: func(ctx context.Context, a *attacker) error {
				cert, err := foreignCertificate(victim)
				if err != nil {
					return err
				}
				s, err := a.connect(ctx, cert, victim)
				if err != nil {
					return err
				}
				return s.conn.Close()
			},
		},
		{
			name: "publish for another gateway", kind: "refused", actor: spiffeGateway(mallory), target: victim, reason: "topic belongs to another gateway",
			attempt: func(ctx context.Context, a *attacker) error {
				s, err := a.connect(ctx, a.identity.Certificate, mallory)
				if err != nil {
					return notARefusal(err)
				}
				defer s.conn.Close()
				return s.publish("wl/1/"+victim+"/up/vitals", bytes.Repeat([]byte{0x5a}, 400))
			},
		},
	}
	after = []trial{
		{
			name: "connect once revoked", kind: "refused", actor: spiffeGateway(mallory), target: mallory, reason: "gateway is revoked",
			attempt: func(ctx context.Context, a *attacker) error {
				s, err := a.connect(ctx, a.identity.Certificate, mallory)
				if err != nil {
					return err
				}
				return s.conn.Close()
			},
		},
		{
			name: "renew once revoked", kind: "refused", actor: spiffeGateway(mallory), target: enroll.Fingerprint(t.malloryEK), reason: "gateway is revoked",
			attempt: func(ctx context.Context, a *attacker) error {
				_, err := a.enroller.Enroll(ctx)
				if revoked := (*enroll.CutOffError)(nil); errors.As(err, &revoked) {
					return errRefused{err.Error()}
				}
				return err
			},
		},
	}
	return before, after
}

// notARefusal is for what must succeed, so that the attack itself can be tried.
func notARefusal(err error) error {
	return fmt.Errorf("the attack could not even begin: %s", err) // no %w: it must not pass for the refusal that is wanted
}

// attack tries everything, with a genuine gateway in its hands.
func (t *theatre) attack(ctx context.Context) error {
	t.stages.note("%s, enrolled like the others, is carried away: TPM, state and certificate are in an attacker's hands", mallory)
	t.mallory.process().Stop()
	a, err := newAttacker(ctx, t.mallory, filepath.Join(t.dir, "kit.json"), t.front)
	if err != nil {
		return fmt.Errorf("attacker: %w", err)
	}
	defer a.close()
	before, after := t.trials()
	for _, tr := range before {
		if err := t.try(ctx, a, tr); err != nil {
			return err
		}
	}
	if err := t.revoke(ctx, a); err != nil {
		return err
	}
	for _, tr := range after {
		if err := t.try(ctx, a, tr); err != nil {
			return err
		}
	}
	return nil
}

// try makes one attempt. Whether it was refused goes into the summary; an error means that nobody knows.
func (t *theatre) try(ctx context.Context, a *attacker, tr trial) error {
	r := Refusal{Case: tr.name}
	err := tr.attempt(ctx, a)
	var refused errRefused
	switch {
	case errors.As(err, &refused):
		r.Refused, r.Answer = true, refused.answer
		t.stages.note("attack: %s: refused (%s)", tr.name, refused.answer)
	case err != nil:
		return fmt.Errorf("attack: %s: %w", tr.name, err)
	default:
		t.stages.note("attack: %s: NOT REFUSED", tr.name)
	}
	t.count(func(s *Summary) { s.Refusals = append(s.Refusals, r) })
	return nil
}

// revoke has the operator revoke the gateway in the middle of a session of its, and measures from the command's start until the
// session's end.
func (t *theatre) revoke(ctx context.Context, a *attacker) error {
	s, err := a.connect(ctx, a.identity.Certificate, mallory)
	if err != nil {
		return notARefusal(err)
	}
	defer s.conn.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cut := make(chan time.Time, 1)
	go func() {
		if s.ended(ctx) == nil {
			cut <- time.Now()
		}
		close(cut)
	}()
	begun := time.Now()
	if _, err := child.Output(ctx, t.bin("wardlink"), "--operator", t.operator(), "gateway", "revoke", mallory, "--reason", revokedReason); err != nil {
		return err
	}
	at, ok := <-cut
	if !ok {
		return errors.New("the session of a revoked gateway goes on")
	}
	took := at.Sub(begun)
	t.count(func(s *Summary) { s.RevokeSeconds = took.Seconds() })
	t.stages.note("wardlink gateway revoke %s: its session is cut after %.2f s", mallory, took.Seconds())
	return nil
}

// findRefusals looks for each refusal in the log, with actor and reason. What was counted is journaled within seconds, so it waits.
func (t *theatre) findRefusals(ctx context.Context) error {
	if t.Disaster {
		return nil
	}
	t.stages.begin("refusals")
	before, after := t.trials()
	all := append(before, after...)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	found := 0
	for found < len(all) {
		list, err := t.refusalsInTheLog(ctx)
		if err != nil {
			return err
		}
		found = 0
		for i, tr := range all {
			if r := &t.summary.Refusals[i]; tr.find(list, r) {
				found++
			}
		}
		if found < len(all) {
			if err := pauseFor(ctx, 500*time.Millisecond); err != nil {
				break // what was not found stays without a leaf, and the summary is not OK
			}
		}
	}
	t.stages.done("%d of %d attacks are in the log, each with actor and reason", found, len(all))
	return nil
}

func pauseFor(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// logged is a line of 'wardlink audit list --json', as far as refusals need it.
type logged struct {
	Leaf                                               uint64
	Type, Actor, Peer, Target, Outcome, Reason, Serial string
}

func (t *theatre) refusalsInTheLog(ctx context.Context) (list []logged, err error) {
	out, err := child.Output(ctx, t.bin("wardlink"), "audit", "list", "--json", "--dir", t.server, "--outcome", "denied", "--limit", "1000000")
	if err != nil {
		return nil, err
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l logged
		switch err := dec.Decode(&l); {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil:
			return nil, fmt.Errorf("audit list: %w", err)
		}
		list = append(list, l)
	}
}

// find enters the refusal's leaf into r, if it is in the list.
func (tr trial) find(list []logged, r *Refusal) bool {
	i := slices.IndexFunc(list, func(l logged) bool {
		return l.Type == tr.kind && l.Outcome == "denied" && l.Actor == tr.actor && strings.Contains(l.Reason, tr.reason) &&
			(tr.target == "" || l.Target == tr.target) && (tr.peer == "" || l.Peer == tr.peer)
	})
	if i < 0 {
		return false
	}
	l := list[i]
	r.Leaf, r.Actor, r.Peer, r.Target, r.Reason = l.Leaf, l.Actor, l.Peer, l.Target, l.Reason
	return true
}
