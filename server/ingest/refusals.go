package ingest

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
)

// Refusals counts what was refused before an identity was proven, by peer prefix (/24, /64), reason and minute. Anyone can cause
// such refusals, so they may not cost an event each: a port scan would fill the log. At the cap of a minute's bytes further
// prefixes and reasons count as one.
type Refusals struct {
	journal Journal
	metrics *metrics

	mu     sync.Mutex
	counts map[refusalKey]uint64
	bytes  int
}

type refusalKey struct {
	minute int64 // Unix minutes
	prefix string
	reason string
}

const (
	maxRefusalReason = 128
	maxRefusalBytes  = 64 << 10 // of the keys between two flushes, and roughly of the events they become
	refusalOverhead  = 96       // what an event holds besides prefix and reason
)

func newRefusals(j Journal, m *metrics) *Refusals {
	return &Refusals{journal: j, metrics: m, counts: make(map[refusalKey]uint64)}
}

// Add counts one refusal. reason should be one of a few constant texts; it is cut at 128 bytes. Safe for concurrent use, never
// blocks on the journal.
func (r *Refusals) Add(peer net.Addr, reason string) {
	if len(reason) > maxRefusalReason {
		reason = reason[:maxRefusalReason]
	}
	key := refusalKey{minute: time.Now().Unix() / 60, prefix: prefixOf(peer), reason: strings.ToValidUTF8(reason, "")}
	r.metrics.unproven.Inc()
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.counts[key]; !known {
		cost := len(key.prefix) + len(key.reason) + refusalOverhead
		if r.bytes+cost > maxRefusalBytes {
			// Not bounded by the cap itself: one key a minute, as long as the journal cannot be written.
			key.prefix, key.reason = reasonOverflow, reasonOverflow
		} else {
			r.bytes += cost
		}
	}
	r.counts[key]++
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

// flush journals what was counted. On an error the counts stay for the next time.
func (r *Refusals) flush(ctx context.Context) error {
	r.mu.Lock()
	counts, bytes := r.counts, r.bytes
	r.counts, r.bytes = make(map[refusalKey]uint64), 0
	r.mu.Unlock()
	if len(counts) == 0 {
		return nil
	}
	entries := make([]journal.Entry, 0, len(counts))
	for key, n := range counts {
		ev := audit.Event{
			ID: r.journal.NextID(), Type: audit.RefusedPeers, Time: time.Now().UnixMilli(), Actor: audit.Actor{ID: "peer"},
			Peer: key.prefix, Outcome: audit.Denied, Reason: key.reason, Count: n,
			Detail: map[string]string{"minute": time.Unix(key.minute*60, 0).UTC().Format(time.RFC3339)},
		}
		head, err := audit.EncodeEvent(ev)
		if err != nil {
			r.restore(counts, bytes)
			return err
		}
		entries = append(entries, journal.Entry{ID: ev.ID, Kind: journal.KindEvent, Head: head})
	}
	if err := r.journal.Append(ctx, entries...); err != nil {
		r.restore(counts, bytes)
		return err
	}
	return nil
}

func (r *Refusals) restore(counts map[refusalKey]uint64, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, n := range counts {
		r.counts[key] += n
	}
	r.bytes += bytes
}
