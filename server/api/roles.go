package api

import (
	"slices"

	"wardlink/server/registry"
)

// permissions is the one table of who may do what at the operators' port: the roles of each route. A route that is not in it cannot be
// registered, and a role that is not in its row is refused, with an event.
//
// Who looks (look) sees gateways, alerts and figures, no patient. Who acts (act) changes what gateways do. The log of accesses names
// pseudonyms of patients, so it is read by those who review it (review); who may do what is changed by admins alone (admin).
func permissions() map[string][]registry.Role {
	look := []registry.Role{registry.Viewer, registry.Auditor, registry.Operate, registry.Admin}
	act := []registry.Role{registry.Operate, registry.Admin}
	review := []registry.Role{registry.Auditor, registry.Admin}
	admin := []registry.Role{registry.Admin}
	return map[string][]registry.Role{
		"GET /metrics":                  look,
		"GET /v1/status":                look,
		"GET /v1/clock":                 look,
		"GET /v1/gateways":              look,
		"GET /v1/gateways/{id}":         look,
		"GET /v1/trace":                 look,
		"GET /v1/accounts":              look,
		"GET /v1/accounts/{id}":         look,
		"GET /v1/alerts":                look,
		"GET /v1/alerts/silences":       look,
		"GET /v1/configs":               look,
		"GET /v1/configs/{kind}/{name}": look,
		"GET /v1/records/dead":          look,
		"GET /v1/records/reopen/{n}":    look,
		"GET /v1/records/retention":     look,
		"GET /v1/audit/log-verifier":    look,
		"GET /v1/boot":                  look,
		"GET /v1/gateways/{id}/boot":    look,
		"GET /v1/profiles":              look,
		"GET /v1/gateways/{id}/explain": look,
		"GET /v1/inventory":             look,
		"GET /v1/self":                  look,
		"POST /v1/self/renew":           look,

		"GET /v1/kit":                         act,
		"POST /v1/clock/confirm":              act,
		"POST /v1/gateways/{id}/clock":        act,
		"POST /v1/gateways/import":            act,
		"POST /v1/gateways/approve":           act,
		"POST /v1/gateways/approve-batch":     act,
		"POST /v1/gateways/{id}/revoke":       act,
		"POST /v1/gateways/{id}/move":         act,
		"POST /v1/gateways/{id}/replace":      act,
		"POST /v1/gateways/{id}/suspend":      act,
		"POST /v1/gateways/{id}/resume":       act,
		"POST /v1/gateways/{id}/decommission": act,
		"POST /v1/boot/policy":                act,
		"POST /v1/boot/allow":                 act,
		"POST /v1/boot/withdraw":              act,
		"POST /v1/gateways/{id}/boot/lock":    act,
		"POST /v1/gateways/{id}/boot/relearn": act,
		"POST /v1/gateways/{id}/readmit":      act,
		"POST /v1/gateways/{id}/profile":      act,
		"POST /v1/gateways/{id}/window":       act,
		"POST /v1/gateways/{id}/code":         act,
		"GET /v1/gateways/{id}/held":          act,
		"POST /v1/gateways/{id}/salvage":      act,
		"POST /v1/configs/{kind}/{name}":      act,
		"POST /v1/records/reopen":             act,
		"POST /v1/alerts/ack":                 act,
		"POST /v1/alerts/silences":            act,
		"POST /v1/alerts/unsilence":           act,
		"POST /v1/alerts/test":                act,

		"GET /v1/audit":                             review,
		"GET /v1/audit/proof":                       review,
		"GET /v1/gateways/{id}/record":              {registry.Auditor, registry.Operate, registry.Admin}, // the proof of an end that operators ordered
		"GET /v1/identities":                        review,
		"GET /v1/identities/{kind}/{name}":          review,
		"POST /v1/identities/{kind}/{name}/explain": review,

		"POST /v1/profiles/{name}":                 admin,
		"POST /v1/access":                          admin,
		"POST /v1/identities/{kind}/{name}/change": admin,
		"POST /v1/identities/{kind}/{name}/state":  admin,
		"POST /v1/identities/{kind}/{name}/rotate": admin,
	}
}

// Routes are all routes of the operators' API by the roles that may use them, for who shows or checks them.
func Routes() map[string][]registry.Role { return permissions() }

// routesOf are those of one role, sorted.
func routesOf(role registry.Role) (out []string) {
	for route, roles := range permissions() {
		if slices.Contains(roles, role) {
			out = append(out, route)
		}
	}
	slices.Sort(out)
	return out
}
