package watch

import (
	"context"
	"testing"
	"time"
)

// A version that is taken back is told at once; one that a connected gateway does not take, after a while. Whoever is not connected is silent,
// which is an alert of its own.
func TestConfigurations(t *testing.T) {
	var list []Configuration
	p := newPost(t, func(c *Config) {
		c.Configurations = func(context.Context) ([]Configuration, error) { return list, nil }
	})
	p.set(func() {
		p.sessions = []string{"icu-7", "icu-8"}
		issued := p.at
		list = []Configuration{
			{Gateway: "icu-7", Document: "own", Wanted: 3, InForce: 2, Issued: issued, State: ConfigTakenBack, Reason: "no"},
			{Gateway: "icu-7", Document: "site main", Wanted: 1, InForce: 1, Issued: issued, State: ConfigSettled},
			{Gateway: "icu-8", Document: "own", Wanted: 2, InForce: 1, Issued: issued, State: ConfigUnderWay},
			{Gateway: "er-1", Document: "own", Wanted: 2, InForce: 1, Issued: issued, State: ConfigUnderWay},
		}
	})
	p.pass(time.Minute)
	p.expect("config-reverted/icu-7 warning")
	p.pass(configLate)
	p.expect("config-late/icu-8 warning", "config-reverted/icu-7 warning")
	p.set(func() { list[0].State, list[2].State = ConfigUnderWay, ConfigSettled })
	p.set(func() { list[0].Issued = p.at })
	p.pass(3 * time.Minute)
	p.expect()
}
