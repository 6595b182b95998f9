package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/server/api/client"
	"wardlink/server/ingest"
	"wardlink/server/registry"
)

// Connections is what the sessions of all nodes do.
type Connections interface {
	Sessions() []ingest.SessionInfo
	Traffic(gateway string) ingest.Traffic
	RefusedBatches() map[string]ingest.Parked
	Rivals() map[string]ingest.Rival
}

// explainGateway says what a gateway may do and why: by the registry that CA and ingest ask, in their order.
func (a *API) explainGateway(w http.ResponseWriter, r *http.Request, who who) error {
	ctx, now := r.Context(), time.Now()
	g, err := a.Registry.Get(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.RegistryRead, Target: g.ID, Outcome: audit.Success, Count: 1}); err != nil {
		return err
	}
	_, err = a.Registry.Admit(ctx, g.ID)
	if err != nil && !errors.Is(err, registry.ErrNotActive) {
		return err
	}
	out := client.GatewayExplanation{Gateway: g.ID, Allowed: err == nil, Checks: a.gatewayChecks(g, now)}
	say := func(what, format string, args ...any) {
		out.Facts = append(out.Facts, client.Fact{What: what, Says: fmt.Sprintf(format, args...)})
	}
	rate := "no rate of its own"
	if p := g.Grant; p.Publishes > 0 || p.Bytes > 0 {
		rate = fmt.Sprintf("%s publishes and %s bytes a second; what is over it is read later", orNo(p.Publishes), orNo(p.Bytes))
	}
	say("rates", "%s (profile %s)", rate, g.Profile)
	if err := a.explainProofs(ctx, g, now, say); err != nil {
		return err
	}
	if err := a.explainPlace(ctx, g, say); err != nil {
		return err
	}
	if err := a.explainRefusals(ctx, g.ID, now, say); err != nil {
		return err
	}
	return writeJSON(w, out)
}

func orNo(n int) string {
	if n == 0 {
		return "any number of"
	}
	return fmt.Sprint(n)
}

// gatewayChecks are what admission asks, in its order.
func (a *API) gatewayChecks(g registry.Gateway, now time.Time) (checks []client.Check) {
	add := func(what string, holds bool, why string) {
		checks = append(checks, client.Check{What: what, Holds: holds, Why: why})
	}
	switch {
	case g.Revoked != nil:
		add("state", false, fmt.Sprintf("revoked by %s at %s: %s; 'wardlink gateway resume %s --reason TEXT' takes a mistake back", g.Revoked.By, rfc3339(g.Revoked.At), g.Revoked.Reason, g.ID))
	case g.Hold != nil && g.State == registry.Suspended:
		add("state", false, fmt.Sprintf("suspended by %s at %s: %s; 'wardlink gateway resume %s'", g.Hold.By, rfc3339(g.Hold.At), g.Hold.Reason, g.ID))
	case g.Hold != nil && g.State == registry.Decommissioned:
		add("state", false, fmt.Sprintf("decommissioned by %s at %s: %s; for ever", g.Hold.By, rfc3339(g.Hold.At), g.Hold.Reason))
	case g.State == registry.Quarantined:
		add("state", true, "quarantined: connected and served, and what it publishes is never final")
	default:
		add("state", g.State == registry.Active, string(g.State))
	}
	valid := registry.Window(g.NotBefore, g.NotAfter)
	switch {
	case g.Outside(now):
		add("validity", false, fmt.Sprintf("valid %s; 'wardlink gateway window %s' changes that", valid, g.ID))
	default:
		add("validity", true, "valid "+valid)
	}
	lanes := registry.LaneNames(g.Grant.Lanes)
	for _, lane := range registry.LaneNames(1<<4 - 1) {
		if slices.Contains(lanes, lane) {
			add("lane "+lane, true, "in profile "+g.Profile)
		} else {
			add("lane "+lane, false, fmt.Sprintf("not in profile %s: batches on it are refused and stay on the gateway; 'wardlink profile set %s' changes that", g.Profile, g.Profile))
		}
	}
	return checks
}

// explainProofs is about certificate, boot and TPM.
func (a *API) explainProofs(ctx context.Context, g registry.Gateway, now time.Time, say func(what, format string, args ...any)) error {
	eks := make([]string, len(g.EKs))
	for i, ek := range hexes(g.EKs) {
		eks[i] = ek[:16]
	}
	say("endorsement keys", "%s: a certificate is for a TPM that proves one of them", strings.Join(eks, ", "))
	certs, err := a.Registry.Certificates(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(certs, func(c registry.Certificate) bool { return c.Gateway == g.ID })
	switch {
	case i < 0:
		say("certificate", "none, or none that counts while it is %s", g.State)
	case now.After(certs[i].NotAfter):
		say("certificate", "ended at %s; it enrols again by itself once it can", rfc3339(certs[i].NotAfter))
	default:
		say("certificate", "until %s; it renews by itself from %s on", rfc3339(certs[i].NotAfter), rfc3339(halfOf(certs[i].NotBefore, certs[i].NotAfter)))
	}
	b, err := a.Registry.Boot(ctx, g.ID)
	if err != nil {
		return err
	}
	state := "nothing is measured yet"
	if b.State != "" {
		state = "the newest boot is " + string(b.State)
	}
	say("boot", "policy %s, %s", b.Policy.Mode, state)
	code, err := a.Registry.CodeOf(ctx, g.ID)
	if err != nil {
		return err
	}
	if code != nil {
		say("one-time code", "its first enrolment wants one, until %s; %d tries are left; made by %s", rfc3339(code.Ends), code.Tries, code.By)
	}
	if b.Held != nil {
		say("quarantine", "since %s: %s; 'wardlink gateway readmit %s --reason TEXT'", rfc3339(b.Held.Since), b.Held.Mismatch.String(), g.ID)
	}
	return nil
}

// explainPlace is about where it stands and whether it is connected.
func (a *API) explainPlace(ctx context.Context, g registry.Gateway, say func(what, format string, args ...any)) error {
	ward := g.Ward
	if ward == "" {
		ward = "none"
	}
	say("ward", "%s", ward)
	planned, err := a.Registry.Planned(ctx)
	if err != nil {
		return err
	}
	if next, ok := planned[g.ID]; ok {
		say("ward to come", "%s from %s on", next.Name, rfc3339(next.Since))
	}
	sessions := a.Connections.Sessions()
	if i := slices.IndexFunc(sessions, func(s ingest.SessionInfo) bool { return s.Gateway == g.ID }); i >= 0 {
		say("session", "since %s from %s", rfc3339(sessions[i].Opened), sessions[i].Peer)
		return nil
	}
	t := a.Connections.Traffic(g.ID)
	if t.Ended.IsZero() {
		say("session", "none since the server's start")
	} else {
		say("session", "none; the last ended at %s: %s", rfc3339(t.Ended), t.Reason)
	}
	return nil
}

// explainRefusals is about what was refused lately.
func (a *API) explainRefusals(ctx context.Context, id string, now time.Time, say func(what, format string, args ...any)) error {
	if t := a.Connections.Traffic(id); !t.Refused.IsZero() {
		say("refused", "last at %s: %s; 'wardlink audit list --type refused --gateway %s' has all", rfc3339(t.Refused), t.Why, id)
	}
	if p, ok := a.Connections.RefusedBatches()[id]; ok {
		say("batches refused", "%d since the server's start, last at %s: %s; the gateway keeps them", p.Count, rfc3339(p.Last), p.Reason)
	}
	if rival, ok := a.Connections.Rivals()[id]; ok {
		say("second agent", "refused %d times, last at %s, from %s", rival.Count, rfc3339(rival.Last), rival.Peer)
	}
	noted, err := a.Registry.Contentions(ctx, now.Add(-7*24*time.Hour))
	if err != nil {
		return err
	}
	for _, c := range noted {
		if c.Gateway == id || c.Rival == id {
			say("identity conflict", "%s, last at %s; %s", c.What(), rfc3339(c.Last), c.Mend())
		}
	}
	return nil
}

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }
