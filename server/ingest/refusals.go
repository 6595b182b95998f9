package ingest

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
)

// Refusals counts what was refused before an identity was proven, by peer prefix (/24, /64), reason and minute. Anyone can cause
// such refusals, so they may not cost an event each: a port scan would fill the log. The first of a kind is journaled within
// seconds, so that whoever is attacked sees it, the others as one when the minute is over: at most two events for a prefix, reason and
// minute. At the cap of a minute's bytes further prefixes and reasons count as one.
type Refusals struct {
	journal Journal
	metrics *metrics
	rates   *rates // nil: nobody asks

	mu    sync.Mutex
	kinds map[refusalKey]tally
	bytes int
}

type refusalKey struct {
	minute int64 // Unix minutes
	prefix string
	reason string
}

// tally is how often something was refused, and how many of those are journaled or on their way.
type tally struct{ count, told uint64 }

const (
	maxRefusalReason = 128
	maxRefusalBytes  = 64 << 10 // of a minute's keys, and roughly of the events they become
	refusalOverhead  = 96       // what an event holds besides prefix and reason

	tellRefusals = 2 * time.Second // how soon the first of a kind is journaled, and how long after its minute the others are
)

func newRefusals(j Journal, m *metrics) *Refusals {
	return &Refusals{journal: j, metrics: m, kinds: make(map[refusalKey]tally)}
}

// Add counts one refusal. reason should be one of a few constant texts; it is cut at 128 bytes. Safe for concurrent use, never
// blocks on the journal.
func (r *Refusals) Add(peer net.Addr, reason string) {
	r.metrics.unproven.Inc()
	r.add(peer, reason)
}

// add is Add for who has proven an identity: its metric is another.
func (r *Refusals) add(peer net.Addr, reason string) {
	if len(reason) > maxRefusalReason {
		reason = reason[:maxRefusalReason]
	}
	key := refusalKey{minute: time.Now().Unix() / 60, prefix: prefixOf(peer), reason: strings.ToValidUTF8(reason, "")}
	if r.rates != nil {
		r.rates.refused(key.prefix, key.reason)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.kinds[key]; !known {
		if r.bytes+key.cost() > maxRefusalBytes {
			// Not bounded by the cap itself: one key a minute, as long as the journal cannot be written.
			key.prefix, key.reason = reasonOverflow, reasonOverflow
		} else {
			r.bytes += key.cost()
		}
	}
	t := r.kinds[key]
	t.count++
	r.kinds[key] = t
}

// cost is what a key may cost the journal: two events.
func (k refusalKey) cost() int { return 2 * (len(k.prefix) + len(k.reason) + refusalOverhead) }

// run journals what was counted until ctx ends. What is left then is for flush.
func (r *Refusals) run(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(tellRefusals)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := r.tell(ctx, false); err != nil && ctx.Err() == nil {
			log.Error("aggregated refusals are not journaled yet", "error", err)
		}
	}
}

// prefixOf gives the network that a peer's refusals count for.
func prefixOf(peer net.Addr) string {
	if peer == nil {
		return "unknown"
	}
	at, err := netip.ParseAddrPort(peer.String())
	if err != nil {
		return "unknown"
	}
	ip, bits := at.Addr().Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(ip, bits).Masked().String()
}

// flush journals everything that was counted.
func (r *Refusals) flush(ctx context.Context) error { return r.tell(ctx, true) }

// tell journals the kinds that were never journaled and those whose minute is over, or all. On an error the counts stay for the next
// time.
func (r *Refusals) tell(ctx context.Context, all bool) error {
	minute := time.Now().Unix() / 60
	due := r.due(func(k refusalKey, t tally) bool { return all || t.told == 0 || k.minute < minute })
	entries := make([]journal.Entry, 0, len(due))
	for key, n := range due {
		ev := audit.Event{
			ID: r.journal.NextID(), Type: audit.RefusedPeers, Time: time.Now().UnixMilli(), Actor: audit.Actor{ID: "peer"},
			Peer: key.prefix, Outcome: audit.Denied, Reason: key.reason, Count: n,
			Detail: map[string]string{"minute": time.Unix(key.minute*60, 0).UTC().Format(time.RFC3339)},
		}
		head, err := audit.EncodeEvent(ev)
		if err != nil {
			r.untold(due)
			return err
		}
		entries = append(entries, journal.Entry{ID: ev.ID, Kind: journal.KindEvent, Head: head})
	}
	if len(entries) > 0 {
		if err := r.journal.Append(ctx, entries...); err != nil {
			r.untold(due)
			return err
		}
	}
	r.forget(minute)
	return nil
}

// due takes what is to be journaled now and counts it as told.
func (r *Refusals) due(now func(refusalKey, tally) bool) map[refusalKey]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	due := make(map[refusalKey]uint64)
	for key, t := range r.kinds {
		if t.count > t.told && now(key, t) {
			due[key] = t.count - t.told
			r.kinds[key] = tally{t.count, t.count}
		}
	}
	return due
}

func (r *Refusals) untold(due map[refusalKey]uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, n := range due {
		t := r.kinds[key]
		t.told -= n
		r.kinds[key] = t
	}
}

// forget makes room: minutes that are over and told get no more refusals.
func (r *Refusals) forget(minute int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, t := range r.kinds {
		if key.minute < minute && t.count == t.told {
			delete(r.kinds, key)
			if key.prefix != reasonOverflow {
				r.bytes -= key.cost()
			}
		}
	}
}
