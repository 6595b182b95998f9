package sqldb

import (
	"context"
	"maps"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// NativeConfig is for a room that speaks to PostgreSQL without database/sql: how this program connects to the database at url, with further
// session parameters. Connections must be made by ConnectNative or a pool of NativePool, which refuse a server that may forget.
func NativeConfig(url string, parameters map[string]string) (*pgx.ConnConfig, error) {
	c, err := postgresConfig(url)
	if err != nil {
		return nil, err
	}
	maps.Copy(c.RuntimeParams, sessionParameters())
	maps.Copy(c.RuntimeParams, parameters)
	return c, nil
}

// ConnectNative makes one connection.
func ConnectNative(ctx context.Context, c *pgx.ConnConfig) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := suitable(ctx, conn); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return conn, nil
}

// NativePool makes a pool of at most size connections; none is made yet.
func NativePool(ctx context.Context, c *pgx.ConnConfig, size int32) (*pgxpool.Pool, error) {
	p, err := pgxpool.ParseConfig("postgres://localhost/x") // the only way to make one; what it parsed is replaced
	if err != nil {
		return nil, err
	}
	p.ConnConfig, p.MaxConns, p.AfterConnect = c, size, suitable
	return pgxpool.NewWithConfig(ctx, p)
}

// Explain names the database and the mend, once. nil stays nil.
func Explain(url string, err error) error { return explain(Display(url), err) }
