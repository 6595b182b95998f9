package registry

import (
	"context"
	"fmt"
)

// Count is how many gateways are registered and how many TPMs wait.
func (r *Registry) Count(ctx context.Context) (gateways, waiting int, err error) {
	err = r.db.QueryRow(ctx, "SELECT (SELECT COUNT(*) FROM gateways), (SELECT COUNT(*) FROM waiting)").Scan(&gateways, &waiting)
	if err != nil {
		return 0, 0, fmt.Errorf("registry: %w", err)
	}
	return gateways, waiting, nil
}
