package watch

import (
	"context"
	"fmt"
	"time"

	"wardlink/server/alerts"
)

// Used is the share of its life that a certificate has behind it: 0 at its beginning, 1 at its end.
func (t Term) Used(now time.Time) float64 {
	life := t.NotAfter.Sub(t.NotBefore)
	if life <= 0 {
		return 1
	}
	return float64(now.Sub(t.NotBefore)) / float64(life)
}

// Due says whether it is time to renew, and whether it is late.
func (t Term) Due(now time.Time) (due, late bool) {
	used := t.Used(now)
	return used >= t.Warn, used >= t.Late
}

func termsLook(terms func(context.Context) ([]Term, error)) look {
	return func(ctx context.Context, now time.Time) (out []alerts.Condition, err error) {
		list, err := terms(ctx)
		for _, t := range list {
			due, late := t.Due(now)
			if !due {
				continue
			}
			c := alerts.Condition{Subject: t.Subject, Detail: map[string]string{
				"not_after": rfc(t.NotAfter), "used": fmt.Sprintf("%.0f %%", 100*t.Used(now)), "renew": t.Renewal,
			}}
			if late {
				c.Severity = alerts.Critical
			}
			if out = append(out, c); len(out) == maxListed {
				break
			}
		}
		return out, err
	}
}

func caLook(ca func() CA) look {
	return func(_ context.Context, _ time.Time) ([]alerts.Condition, error) {
		c := ca()
		if c.Well {
			return nil, nil
		}
		return one(map[string]string{"error": c.Reason, "since": rfc(c.Since)}), nil
	}
}

func graceLook(i Ingest) look {
	return func(context.Context, time.Time) (out []alerts.Condition, err error) {
		for _, s := range i.Sessions() {
			if !s.Grace {
				continue
			}
			out = append(out, alerts.Condition{Subject: s.Gateway, Detail: map[string]string{"grace_ends": rfc(s.NotAfter)}})
			if len(out) == maxListed {
				break
			}
		}
		return out, nil
	}
}
