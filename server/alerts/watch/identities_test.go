package watch

import (
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/ingest"
	"wardlink/server/registry"
)

// TestIdentityConflict: each way in which two claim to be one is an alert of the gateway, and ends by itself.
func TestIdentityConflict(t *testing.T) {
	p := newPost(t)
	p.register("gw-1", "gw-2", "gw-3", "gw-4")
	p.pass(time.Minute)
	p.expect()
	for i, c := range []registry.Contention{
		{Claim: registry.OneKey, Gateway: "gw-1", Rival: "gw-9"},
		{Claim: registry.OneTPM, Gateway: "gw-2", Rival: "gw-1"},
		{Claim: registry.ForeignDisk, Gateway: "gw-3", Rival: "AAAA-BBBB-CCCC-DDDD"},
	} {
		p.must(p.registry.Contend(t.Context(), audit.Actor{ID: "server"}, c))
		p.pass(30 * time.Second)
		p.expect([]string{"identity-conflict/gw-1 critical", "identity-conflict/gw-2 critical", "identity-conflict/gw-3 critical"}[:i+1]...)
	}
	p.set(func() {
		p.rivals = map[string]ingest.Rival{"gw-4": {Count: 3, Last: p.at, Live: "192.0.2.1:1", Peer: "192.0.2.1:2"}}
	})
	p.pass(30 * time.Second)
	p.expect("identity-conflict/gw-1 critical", "identity-conflict/gw-2 critical", "identity-conflict/gw-3 critical", "identity-conflict/gw-4 critical")
	p.leap(2 * time.Hour)
	p.pass(2 * time.Minute)
	p.expect("identity-conflict/gw-1 critical", "identity-conflict/gw-2 critical", "identity-conflict/gw-3 critical")
	p.leap(23 * time.Hour)
	p.pass(2 * time.Minute)
	p.expect()
}
