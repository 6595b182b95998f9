package sqldb

import (
	"context"
	"errors"
)

// maxCallers are the connections of Call: the commits of those that run at the same time share a flush.
const maxCallers = 4

var errCall = errors.New("on SQLite there are no functions to call")

// Call calls a function of a PostgreSQL database, which does all that it does in a transaction of its own, and scans what it returns. It does
// not wait for other writes, nor they for it: such a function locks what it needs. nil means that it is durable. After an error it may have
// happened all the same.
func (d *DB) Call(ctx context.Context, query string, args []any, dest ...any) error {
	if d.callers == nil {
		return errCall
	}
	return explain(d.path, d.callers.QueryRowContext(ctx, query, args...).Scan(dest...))
}
