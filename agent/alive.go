package agent

import (
	"context"
	"fmt"
)

// alive goes the way of a message without sending one: the goroutine that commits must come round, and every part must give its
// figures, so that none of their locks is stuck. A full buffer, a missing TPM or network are no death: a new start mends none of them.
func (a *Agent) alive(ctx context.Context) (status string, err error) {
	if a.buried() != nil {
		return "decommissioned; nothing is taken in", nil
	}
	if err := a.intake.answers(ctx); err != nil {
		return "", err
	}
	s := a.status()
	listening := 0
	for _, src := range s.Sources {
		if src.Listening {
			listening++
		}
	}
	who := s.Gateway
	if who == "" || s.Revoked {
		who = "identity: " + s.Identity
	}
	if s.Waiting != "" {
		who += " as " + s.Waiting
	}
	batches := uint64(0)
	for _, h := range a.buf.Accounts() {
		batches += h.Waiting
	}
	return fmt.Sprintf("%d of %d sources listen; %d batches wait; %s", listening, len(s.Sources), batches, who), nil
}

// answers returns once run has come round to ask for work.
func (in *intake) answers(ctx context.Context) error {
	select {
	case in.pulse <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the commit of a batch does not end: %w", ctx.Err())
	}
}
