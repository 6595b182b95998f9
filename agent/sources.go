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
	return source.NewMLLP(source.Config{
		ID: s.ID, Listen: s.MLLP, Allow: allow, Zone: zone,
		Accept:       func(ctx context.Context, d source.Delivery) error { return a.intake.accept(ctx, d, s.uniqueIDs()) },
		Acknowledged: a.intake.acknowledged,
		Log:          a.log,
	})
}
