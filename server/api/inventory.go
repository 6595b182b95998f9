package api

import (
	"net/http"
	"time"

	"wardlink/audit"
	"wardlink/server/api/client"
)

// inventory is every gateway that ever was, as a register of assets wants it.
func (a *API) inventory(w http.ResponseWriter, r *http.Request, who who) error {
	ctx := r.Context()
	gs, err := a.Registry.List(ctx)
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.RegistryRead, Target: "inventory", Outcome: audit.Success, Count: uint64(len(gs))}); err != nil {
		return err
	}
	agents, err := a.Agents(ctx)
	if err != nil {
		return err
	}
	seen, err := a.Seen(ctx)
	if err != nil {
		return err
	}
	devices, err := a.Registry.Devices(ctx)
	if err != nil {
		return err
	}
	certs, err := a.Registry.Certificates(ctx)
	if err != nil {
		return err
	}
	ends := make(map[string]time.Time, len(certs))
	for _, c := range certs {
		ends[c.Gateway] = c.NotAfter
	}
	boots, err := a.Registry.BootStates(ctx)
	if err != nil {
		return err
	}
	out := make([]client.Asset, 0, len(gs))
	for _, g := range gs {
		d, b := devices[g.ID], boots[g.ID]
		out = append(out, client.Asset{
			ID: g.ID, State: string(g.State), Site: g.Site, Ward: g.Ward, Profile: g.Profile, NotBefore: known(g.NotBefore), NotAfter: known(g.NotAfter),
			EK: hexes(g.EKs), Maker: d.Manufacturer, Model: d.Model, Firmware: d.Firmware, Serial: d.Serial, Agent: agents[g.ID],
			Added: known(g.Added), Seen: known(seen[g.ID]), CertificateEnds: known(ends[g.ID]), Boot: b.State, BootPolicy: b.Policy, Quarantined: known(b.Quarantined),
		})
	}
	return writeJSON(w, out)
}

// known is an instant, nil for none.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
