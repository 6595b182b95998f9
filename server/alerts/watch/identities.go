package watch

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"wardlink/server/alerts"
	"wardlink/server/registry"
)

const (
	// contentionTime is how long a claim that was refused is an alert: nobody can take it back, so that it would stand for ever.
	contentionTime = 24 * time.Hour
	// rivalTime is the same for two agents of one gateway, which come again and again as long as both run.
	rivalTime = time.Hour
)

// contentionLook says who claimed to be whom he cannot be: by the registry's notes, and by connections. Of several about one gateway the newest
// of those that were proven is told in full.
func contentionLook(r Registry, i Ingest) look {
	return func(ctx context.Context, now time.Time) ([]alerts.Condition, error) {
		noted, err := r.Contentions(ctx, now.Add(-contentionTime))
		if err != nil {
			return nil, err
		}
		details := make(map[string]map[string]string)
		for gateway, one := range i.Rivals() {
			if now.Sub(one.Last) < rivalTime {
				details[gateway] = map[string]string{
					"what": "two agents say that they are gateway " + gateway + ", with two certificates of its TPM", "claim": "two-agents",
					"rival": one.Peer, "connected": one.Live, "serial": one.Serial, "times": fmt.Sprint(one.Count), "last": rfc(one.Last),
					"mend": "stop one: a second agent or container on the box, or one that was started from a former copy of its disk; what each buffered is on its disk",
				}
			}
		}
		for _, c := range noted {
			if have := details[c.Gateway]; have != nil {
				have["also"] = c.What()
				continue
			}
			details[c.Gateway] = map[string]string{"what": c.What(), "mend": c.Mend(), "claim": string(c.Claim), "rival": c.Rival,
				"peer": c.Peer, "times": fmt.Sprint(c.Count), "first": rfc(c.First), "last": rfc(c.Last)}
		}
		var out []alerts.Condition
		// Beyond what may be listed, those of which there is no more than somebody's word about a disk are left out.
		word := func(gateway string) bool { return details[gateway]["claim"] == string(registry.ForeignDisk) }
		for _, gateway := range slices.SortedFunc(maps.Keys(details), func(a, b string) int {
			switch {
			case word(a) == word(b):
				return cmp.Compare(a, b)
			case word(a):
				return 1
			}
			return -1
		}) {
			if out = append(out, alerts.Condition{Subject: gateway, Detail: details[gateway]}); len(out) == maxListed {
				break
			}
		}
		return out, nil
	}
}
