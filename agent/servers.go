package agent

import (
	"slices"

	"wardlink/internal/spiffe"
)

// serverID is who a server must prove to be, whatever its address.
func (a *Agent) serverID() spiffe.ID {
	return spiffe.ID{TrustDomain: a.kit.TrustDomain, Kind: spiffe.Service, Name: "ingest"}
}

// servers are those to try now, in their order: those of the hospital's configuration, then those of the kit, so that a configuration
// which grew old cannot cut a gateway off. It is the one place that says so.
func (a *Agent) servers() []string {
	if g := a.buried(); g != nil {
		return a.andKit(g.Servers, true)
	}
	set, alone := a.config.settings()
	return a.andKit(set.Servers, !alone || len(set.Servers) == 0)
}

// andKit adds those of the kit, if kit, that are not among servers yet.
func (a *Agent) andKit(servers []string, kit bool) []string {
	out := slices.Clone(servers)
	if !kit {
		return out
	}
	for _, s := range a.kit.Servers {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
