package demo

import (
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"time"

	"wardlink/enroll/verify/eventlog"
	"wardlink/internal/child"
	"wardlink/internal/swtpm"
	"wardlink/server/api/client"
)

// Quarantine is what came of a gateway that was started with another boot loader.
type Quarantine struct {
	Gateway  string  `json:"gateway"`
	PCR      int     `json:"pcr"`      // as the hospital names it
	Entry    string  `json:"entry"`    // of the event log
	Found    float64 `json:"found"`    // seconds from the start of the agent until the gateway was in quarantine
	Released bool    `json:"released"` // by an operator
	Readings int     `json:"readings"` // from then, in FHIR as preliminary
}

// shown: it was found, named and released, and no reading of that time is final.
func (q *Quarantine) shown() bool {
	return q != nil && q.PCR == bootLoaderPCR && q.Entry != "" && q.Released && q.Readings > 0
}

const (
	bootLoaderPCR = 4 // TCG PC Client Platform Firmware Profile 1.06, 3.3.4.5
	readmitReason = "the boot loader's update of this demonstration"
)

// bootsOthers says whether a gateway is started with another boot loader in this demonstration.
func (t *theatre) bootsOthers() bool { return t.Chaos == 0 && !t.Disaster && !t.Former }

func (g *gateway) eventLog() string { return filepath.Join(g.dir, "event.log") }

// measure does what firmware does before it starts a program: it extends the PCR of boot loaders, and writes that into its log.
func (g *gateway) measure(program string) error {
	log, err := os.ReadFile(g.eventLog())
	if os.IsNotExist(err) {
		log, err = eventlog.Header(), nil
	}
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte(program))
	if err := swtpm.Extend(g.tpm.Socket, bootLoaderPCR, digest); err != nil {
		return err
	}
	return os.WriteFile(g.eventLog(), eventlog.Append(log, bootLoaderPCR, eventlog.BootApplication, digest, eventlog.Image(program)), 0o600)
}

// bootOther starts one gateway with another boot loader. It attests that, is put into quarantine, and delivers all the same, marked; then an
// operator readmits it.
func (t *theatre) bootOther(ctx context.Context) error {
	g := t.fleet[len(t.fleet)-1]
	if _, err := t.untilHalf(ctx, g); err != nil {
		return err
	}
	t.stages.note("%s is switched off, and on again with another boot loader", g.name)
	g.process().Stop()
	if err := g.measure(`\EFI\boot\implant.efi`); err != nil {
		return err
	}
	// It attests with each certificate. This one has half of its life before it, which the demonstration does not wait for.
	if err := os.Remove(filepath.Join(g.dir, "state", "identity", "identity.pem")); err != nil {
		return err
	}
	begun, before := time.Now(), g.monitor.Account().Totals().MessagesAcknowledged
	if err := g.startAgent(t.bin("wardlink-agent")); err != nil {
		return err
	}
	q := &Quarantine{Gateway: g.name}
	state := func(ctx context.Context) (client.Gateway, error) {
		var now client.Gateway
		err := t.api.Get(ctx, "/v1/gateways/"+g.name, nil, &now)
		return now, err
	}
	err := child.Until(ctx, g.name+" in quarantine", t.running(), func(ctx context.Context) (bool, error) {
		now, err := state(ctx)
		if err != nil || now.State != "quarantined" || now.Quarantine == nil {
			return false, err
		}
		q.Found = time.Since(begun).Seconds()
		if q.PCR = now.Quarantine.PCR; now.Quarantine.Entry != nil {
			q.Entry = now.Quarantine.Entry.String()
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	t.stages.note("%s is in quarantine after %.1f s: PCR %d, %s", g.name, q.Found, q.PCR, q.Entry)
	if err := child.Until(ctx, "readings of "+g.name+" in quarantine", t.running(), func(ctx context.Context) (bool, error) {
		s, err := g.status(ctx)
		return err == nil && s.Uplink.Connected && s.waiting() == 0 && g.monitor.Account().Totals().MessagesAcknowledged > before, nil
	}); err != nil {
		return err
	}
	if _, err := child.Output(ctx, t.bin("wardlink"), "--operator", t.operator(), "gateway", "readmit", g.name, "--reason", readmitReason, "--accept"); err != nil {
		return err
	}
	now, err := state(ctx)
	if err != nil {
		return err
	}
	q.Released = now.State == "active" && now.Quarantine == nil
	t.count(func(s *Summary) { s.Quarantine = q })
	t.stages.note("wardlink gateway readmit %s: it is %s", g.name, now.State)
	return nil
}

// unsure tells whether an Observation says that its gateway was in quarantine.
func (o *observation) unsure() bool {
	return slices.Contains(o.Meta.Security, coding{systemIntegrity, uncertain})
}

// held counts readings of a gateway in quarantine, all of which are preliminary; what has no value, as the monitor said, may be cancelled instead.
func (m *matcher) held(o *observation) {
	switch {
	case !o.unsure():
		return
	case o.Status == "cancelled" && o.ValueQuantity == nil && o.ValueSampledData == nil && o.absent():
		return
	case o.Status != "preliminary":
		m.differ(&m.result.Mismatched, "Observation/%s: of a gateway in quarantine, and its status is %q", o.ID, o.Status)
		return
	}
	m.result.Quarantined++
}
