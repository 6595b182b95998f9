package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"wardlink/enroll/wipe"
	"wardlink/telemetry"
)

// errWiped ends a running agent whose gateway is decommissioned. What comes then is grave's.
var errWiped = errors.New("the hospital has decommissioned this gateway")

// How often a draining agent looks whether the hospital has everything, and how often in a row it must have.
const (
	drainLook  = 500 * time.Millisecond
	drainLooks = 3
	buryRetry  = 10 * time.Second
)

// order hands on a document that may be an order to wipe. It never blocks: one that waits stands for all, since the hospital says it again.
func (a *Agent) order(doc []byte) {
	if len(doc) == 0 || len(doc) > wipe.MaxDocument {
		return
	}
	select {
	case a.orders <- doc:
	default:
	}
}

// runOrders waits for an order to wipe that is for this board. It gives errWiped once the agent may be ended for it: at once, or when the
// hospital has everything that waits, during which an order to do it at once still counts. Which of the two, only the signed order says: a
// refusal does not, or whoever answers for the hospital could destroy what waits.
func (a *Agent) runOrders(ctx context.Context) error {
	var drained <-chan error
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-drained:
			if err != nil {
				return nil // only when ctx ended
			}
			return a.bury(ctx)
		case doc := <-a.orders:
			if a.ordered != nil && sha256.Sum256(doc) == sha256.Sum256(a.ordered) {
				continue
			}
			o, err := a.judgeOrder(ctx, doc)
			if err != nil {
				a.log.Warn("an order to wipe is refused", "error", err)
				continue
			}
			a.log.Warn("the hospital has decommissioned this gateway", "reason", o.Reason, "after_drain", o.Drain)
			a.mu.Lock()
			a.ordered, a.leaving = doc, o.Reason
			a.mu.Unlock()
			a.stopSources()
			if !o.Drain {
				return a.bury(ctx)
			}
			done := make(chan error, 1)
			go func() { done <- a.drain(ctx) }()
			drained = done
		}
	}
}

// judgeOrder asks the one decision: the board is named by its TPM, the gateway by its certificate where it has one.
func (a *Agent) judgeOrder(ctx context.Context, doc []byte) (wipe.Order, error) {
	a.mu.Lock()
	dev, gateway := a.dev, ""
	if a.identity != nil {
		gateway = a.identity.Gateway
	}
	a.mu.Unlock()
	if dev == nil {
		return wipe.Order{}, errors.New("the TPM, which says whether it is for this board, is not open")
	}
	ek, err := dev.EK(ctx)
	if err != nil {
		return wipe.Order{}, err
	}
	return wipe.Verify(doc, a.kit.ConfigKey, gateway, ek.Hash)
}

// drain returns once nothing waits that the hospital would take. The sources are stopped; what they had accepted is in the buffer within
// an instant, and so it must be empty several times in a row.
func (a *Agent) drain(ctx context.Context) error {
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for empty := 0; empty < drainLooks; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if a.backlog() == 0 && a.connections() == 0 {
			empty++
		} else {
			empty = 0
		}
	}
	return nil
}

// backlog counts the batches that the hospital does not have and has not refused. The agent's own reports count too: one of them says that the rest is gone.
func (a *Agent) backlog() (n uint64) {
	for _, h := range a.buf.Accounts() {
		n += h.Waiting - min(h.Parked, h.Waiting)
	}
	return n
}

// undelivered counts what is destroyed of what devices sent: batches that the hospital does not have, and those that it refused. The agent's reports of
// itself do not count: there is always one under way, and a proof that stands for ever must not speak of lost data where no device ever sent any.
func (a *Agent) undelivered() (waiting, parked uint64) {
	for _, h := range a.buf.Accounts() {
		if telemetry.Lane(h.Lane) == telemetry.LaneSelf {
			continue
		}
		waiting += h.Waiting - min(h.Parked, h.Waiting)
		parked += h.Parked
	}
	return waiting, parked
}

// recount counts what will be destroyed once more, now that the sources have stopped, what they had accepted is in the buffer, and the uplink
// has ended: while the order was kept all of them went on. A crash before it leaves the former count; the order is durable either way.
func (a *Agent) recount() {
	g := *a.buried()
	g.Waiting, g.Parked = a.undelivered()
	if err := a.keepGrave(&g); err != nil {
		a.log.Error("what is destroyed is counted as it was before the sources stopped", "error", err)
	}
}

// bury makes the order durable: from here on this gateway wipes itself, whatever crashes. A disk that cannot take the order now is tried
// again.
func (a *Agent) bury(ctx context.Context) error {
	g := &grave{Order: a.ordered, Servers: a.servers()}
	for {
		g.Waiting, g.Parked = a.undelivered()
		err := a.keepGrave(g)
		if err == nil {
			return errWiped
		}
		a.log.Error("the order to wipe cannot be kept; it is tried again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(buryRetry):
		}
	}
}
