package agent

import (
	"context"

	"wardlink/agent/source"
)

// openSource makes one source of the configuration, which delivers to the intake.
func (a *Agent) openSource(s SourceConfig) (source.Source, error) {
	zone, err := s.zone()
	if err != nil {
		return nil, err
	}
	if s.isLine() {
		return a.openLine(s, zone)
	}
	allow, err := s.prefixes()
	if err != nil {
		return nil, err
	}
	bindings, err := s.bindings(allow)
	if err != nil {
		return nil, err
	}
	limits, err := s.limits()
	if err != nil {
		return nil, err
	}
	secure, err := s.secure()
	if err != nil {
		return nil, err
	}
	if secure != nil {
		secure.Now = a.time.moment
	}
	return source.NewMLLP(source.Config{
		Bindings: bindings, Limits: limits, MaxConns: s.Limits.Connections, TLS: secure,
		ID: s.ID, Listen: s.MLLP, Allow: allow, Zone: zone,
		Accept:       func(ctx context.Context, d source.Delivery) error { return a.intake.accept(ctx, d, s.uniqueIDs()) },
		Acknowledged: a.intake.acknowledged,
		Log:          a.log,
	})
}
