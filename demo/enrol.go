package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wardlink/internal/child"
	"wardlink/server/api/client"
)

// oneGo is from how many gateways on a demonstration enrols them as an engineer does who switches on a shelf of them: they come up
// unknown, wait in the list, and one file approves them all. Fewer are entered beforehand, which costs no wait for the list.
const oneGo = 10

func (t *theatre) inOneGo() bool { return t.Gateways >= oneGo && t.Chaos == 0 }

// enrolment is what came out of approving many at once.
type enrolment struct {
	Gateways int     `json:"gateways"`
	Seconds  float64 `json:"seconds"`    // from the start of 'wardlink gateway approve --batch' until the last gateway had its certificate
	Rate     float64 `json:"per_second"` // enrolments, over these seconds
	Busiest  int     `json:"busiest_second"`
}

// waitInList switches every gateway on and waits until each has proven its TPM and stands in the waiting list.
func (t *theatre) waitInList(ctx context.Context) error {
	t.stages.begin("waiting list")
	boxes := t.boxes()
	waits := make([]bool, len(boxes))
	seen, begun := 0, 0
	for seen < len(boxes) {
		for ; begun < len(boxes) && begun-seen < starting; begun++ {
			if err := boxes[begun].startAgent(t.bin("wardlink-agent")); err != nil {
				return err
			}
		}
		before := seen
		err := child.Until(ctx, "the waiting list", t.running(), func(ctx context.Context) (bool, error) {
			for i, g := range boxes[:begun] {
				if waits[i] {
					continue
				}
				if s, err := g.status(ctx); err == nil && s.Waiting != "" {
					waits[i], g.fingerprint = true, s.Waiting
					seen++
				}
			}
			t.stages.progress("%d of %d", seen, len(boxes))
			return seen > before, nil
		})
		if err != nil {
			return err
		}
	}
	var list client.GatewayList
	if err := t.api.Get(ctx, "/v1/gateways", nil, &list); err != nil {
		return err
	}
	if len(list.Waiting) != len(boxes) || len(list.Gateways) != 0 {
		return fmt.Errorf("%d gateways wait and %d are registered; expected %d and none", len(list.Waiting), len(list.Gateways), len(boxes))
	}
	t.stages.done("%s switched on, unknown; each shows its fingerprint", plural(len(boxes), "gateway"))
	return nil
}

// approveAll admits all of them from one file, and times their enrolments.
func (t *theatre) approveAll(ctx context.Context) error {
	t.stages.begin("enrolment")
	boxes := t.boxes()
	var rows strings.Builder
	rows.WriteString("id,site,ward,fingerprint\n")
	for _, g := range boxes {
		fmt.Fprintf(&rows, "%s,demo,%s,%s\n", g.name, g.ward, g.fingerprint)
	}
	batch := filepath.Join(t.dir, "batch.csv")
	if err := os.WriteFile(batch, []byte(rows.String()), 0o600); err != nil {
		return err
	}
	begun := time.Now()
	if _, err := child.Output(ctx, t.bin("wardlink"), "--operator", t.operator(), "gateway", "approve", "--batch", batch); err != nil {
		return err
	}
	enrolled, connected := make([]time.Time, len(boxes)), make([]bool, len(boxes))
	done := 0
	err := child.Until(ctx, "enrolment", t.running(), func(ctx context.Context) (bool, error) {
		up := 0
		for i, g := range boxes {
			if !connected[i] {
				s, err := g.status(ctx)
				if err != nil {
					continue
				}
				if s.Gateway != "" && enrolled[i].IsZero() {
					enrolled[i] = time.Now()
					done++
				}
				connected[i] = s.Uplink.Connected
			}
			if connected[i] {
				up++
			}
		}
		t.stages.progress("%d of %d have their certificate, %d are connected", done, len(boxes), up)
		return up == len(boxes), nil
	})
	if err != nil {
		return err
	}
	e := summarise(begun, enrolled)
	t.summary.Enrolment = &e
	t.stages.done("%s approved from one file; %.1f enrolments/s over %.1f s, %d in the busiest second", plural(e.Gateways, "gateway"), e.Rate, e.Seconds, e.Busiest)
	return nil
}

// summarise counts enrolments, whose times need not be in order.
func summarise(begun time.Time, enrolled []time.Time) enrolment {
	at := slices.Clone(enrolled)
	slices.SortFunc(at, time.Time.Compare)
	e := enrolment{Gateways: len(at), Seconds: at[len(at)-1].Sub(begun).Round(10 * time.Millisecond).Seconds()}
	if e.Seconds > 0 {
		e.Rate = float64(len(at)) / e.Seconds
	}
	for i, k := 0, 0; i < len(at); i++ {
		for at[i].Sub(at[k]) >= time.Second {
			k++
		}
		e.Busiest = max(e.Busiest, i-k+1)
	}
	return e
}
