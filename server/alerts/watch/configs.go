package watch

import (
	"context"
	"fmt"
	"time"

	"wardlink/server/alerts"
)

// Configuration is one of a gateway's two documents: its own, or its site's.
type Configuration struct {
	Gateway, Document string
	Wanted, InForce   uint64 // versions
	Issued            time.Time
	State             ConfigState
	Reason            string // of one that was reverted
}

// ConfigState is what became of the wanted version.
type ConfigState int

// The states.
const (
	ConfigUnderWay ConfigState = iota // waiting, prepared or on trial
	ConfigSettled                     // confirmed, or none is wanted
	ConfigTakenBack
)

// configLate is how long a gateway that is connected may take: ten times the 90 seconds of a trial, so that one which waits for another is
// no alert.
const configLate = 15 * time.Minute

func revertedLook(list func(context.Context) ([]Configuration, error)) look {
	return func(ctx context.Context, _ time.Time) ([]alerts.Condition, error) {
		return configurations(ctx, list, func(c Configuration) bool { return c.State == ConfigTakenBack })
	}
}

// lateLook counts from when a gateway could first have known: the version's issue, or the opening of its session.
func lateLook(list func(context.Context) ([]Configuration, error), i Ingest) look {
	return func(ctx context.Context, now time.Time) ([]alerts.Condition, error) {
		opened := make(map[string]time.Time)
		for _, s := range i.Sessions() {
			opened[s.Gateway] = s.Opened
		}
		return configurations(ctx, list, func(c Configuration) bool {
			since, connected := opened[c.Gateway]
			if c.Issued.After(since) {
				since = c.Issued
			}
			return connected && c.State == ConfigUnderWay && now.Sub(since) >= configLate
		})
	}
}

// configurations makes one condition of each gateway's documents that are wrong.
func configurations(ctx context.Context, list func(context.Context) ([]Configuration, error), wrong func(Configuration) bool) (out []alerts.Condition, err error) {
	if list == nil {
		return nil, nil
	}
	all, err := list(ctx)
	for _, c := range all {
		if !wrong(c) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Subject == c.Gateway {
			out[n-1].Detail["document"] += ", " + c.Document
			continue
		}
		if len(out) == maxListed {
			break
		}
		d := map[string]string{"document": c.Document, "wanted": fmt.Sprint(c.Wanted), "in_force": fmt.Sprint(c.InForce), "issued": rfc(c.Issued)}
		if c.Reason != "" {
			d["reason"] = c.Reason
		}
		out = append(out, alerts.Condition{Subject: c.Gateway, Detail: d})
	}
	return out, err
}
