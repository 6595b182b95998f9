package sqldb

import (
	"container/list"
	"context"
	"database/sql/driver"
	"fmt"
	"strings"

	"modernc.org/sqlite"
)

// Bounds of the statements that a connection keeps: what the server's hot paths use is well below the first.
const (
	maxKept     = 128
	maxKeptText = 4 << 10 // bytes; what is longer is a list that was made for one occasion
)

// keeper is a driver.Connector of SQLite whose connections keep the statements that they have prepared, by text: SQLite's parsing and planning takes as long as
// the running of most statements here. (pgx keeps PostgreSQL's by itself.)
type keeper struct{ uri string }

// Connect implements driver.Connector.
func (k keeper) Connect(context.Context) (driver.Conn, error) {
	opened, err := k.Driver().Open(k.uri)
	if err != nil {
		return nil, err
	}
	conn, ok := opened.(sqliteConn)
	if !ok {
		return nil, fmt.Errorf("the SQLite driver's connection %T lacks a method", opened)
	}
	return &keeping{sqliteConn: conn, byText: make(map[string]*list.Element)}, nil
}

// Driver implements driver.Connector.
func (keeper) Driver() driver.Driver { return &sqlite.Driver{} }

// sqliteConn is what is used of the driver's connection, by database/sql and by copyPages.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
	NewBackup(to string) (*sqlite.Backup, error)
}

// keeping is a connection with its statements. One that is in use is not among them, so that the same text can run while rows of it are read. It is for one
// goroutine at a time, as database/sql sees to.
type keeping struct {
	sqliteConn
	byText map[string]*list.Element // of *kept
	recent list.List                // the last used first
}

// kept is one statement.
type kept struct {
	text string
	stmt driver.Stmt
	run  interface {
		driver.StmtExecContext
		driver.StmtQueryContext
	}
}

// keepable says whether a text may be kept: SQLite carries some of a PRAGMA out when it prepares it, and nothing else is run often.
func keepable(text string) bool {
	if len(text) > maxKeptText {
		return false
	}
	text = strings.TrimSpace(text)
	for _, verb := range []string{"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"} {
		if strings.HasPrefix(text, verb) {
			return true
		}
	}
	return false
}

// take gives a statement for a text: it is the caller's until it is put back or closed.
func (c *keeping) take(ctx context.Context, text string) (*kept, error) {
	if e, ok := c.byText[text]; ok {
		delete(c.byText, text)
		return c.recent.Remove(e).(*kept), nil
	}
	stmt, err := c.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	k := &kept{text: text, stmt: stmt}
	var ok bool
	if k.run, ok = stmt.(interface {
		driver.StmtExecContext
		driver.StmtQueryContext
	}); !ok {
		return nil, fmt.Errorf("the SQLite driver's statement %T lacks a method", stmt)
	}
	return k, nil
}

// put keeps a statement that ran without an error.
func (c *keeping) put(k *kept) error {
	if _, ok := c.byText[k.text]; ok { // it ran while its like did
		return k.stmt.Close()
	}
	c.byText[k.text] = c.recent.PushFront(k)
	if c.recent.Len() <= maxKept {
		return nil
	}
	last := c.recent.Remove(c.recent.Back()).(*kept)
	delete(c.byText, last.text)
	return last.stmt.Close()
}

// ExecContext implements driver.ExecerContext.
func (c *keeping) ExecContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	if !keepable(text) {
		return c.sqliteConn.ExecContext(ctx, text, args)
	}
	k, err := c.take(ctx, text)
	if err != nil {
		return nil, err
	}
	result, err := k.run.ExecContext(ctx, args)
	if err != nil {
		_ = k.stmt.Close() // says the same
		return nil, err
	}
	return result, c.put(k)
}

// QueryContext implements driver.QueryerContext.
func (c *keeping) QueryContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Rows, error) {
	if !keepable(text) {
		return c.sqliteConn.QueryContext(ctx, text, args)
	}
	k, err := c.take(ctx, text)
	if err != nil {
		return nil, err
	}
	rows, err := k.run.QueryContext(ctx, args)
	if err != nil {
		_ = k.stmt.Close() // says the same
		return nil, err
	}
	return &keptRows{rows, c, k}, nil
}

// keptRows put their statement back when they are closed.
type keptRows struct {
	driver.Rows
	conn *keeping
	kept *kept
}

// Close implements driver.Rows; database/sql calls it once.
func (r *keptRows) Close() error {
	if err := r.Rows.Close(); err != nil {
		_ = r.kept.stmt.Close() // says the same
		return err
	}
	return r.conn.put(r.kept)
}

// Close implements driver.Conn.
func (c *keeping) Close() error {
	for e := c.recent.Front(); e != nil; e = e.Next() {
		_ = e.Value.(*kept).stmt.Close() // frees it
	}
	c.recent.Init()
	clear(c.byText)
	return c.sqliteConn.Close()
}
