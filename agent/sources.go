package agent

import (
	"context"

	"wardlink/agent/source"
)

// openSource makes one source of the configuration, which delivers to the intake.
func (a *Agent) openSource(s SourceConfig) (source.Source, error) {
	if s.isLine() {
		return a.openLine(s)
	}
	cfg, err := s.device()
	if err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		cfg.TLS.Now = a.time.moment
	}
	cfg.Accept = func(ctx context.Context, d source.Delivery) error { return a.intake.accept(ctx, d, s.uniqueIDs()) }
	cfg.Acknowledged, cfg.Log = a.intake.acknowledged, a.log
	return source.NewMLLP(cfg)
}
