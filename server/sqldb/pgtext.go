package sqldb

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// The driver for PostgreSQL is pgx's, with two things mended between it and database/sql.
//
// Texts. SQLite keeps any bytes in a TEXT; PostgreSQL refuses U+0000 and what is not UTF-8. Texts come from devices, and one that was accepted
// is to be kept as it came, neither changed nor refused. So such a byte is written as an escape in three characters, and read back as what it
// was. The escape begins with a noncharacter of Unicode, which is escaped itself: two texts are equal if and only if what stands in the
// database is. All other texts stand there as they are.
//
// Errors. Some quote what was to be stored, and errors go to logs: see quiet.

// textEscape is U+FDD0; two hexadecimal digits of the byte follow.
const textEscape = "\uFDD0"

// escapeText writes a text as PostgreSQL can keep it.
func escapeText(s string) string {
	if strings.IndexByte(s, 0) < 0 && utf8.ValidString(s) && !strings.Contains(s, textEscape) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == 0 || r == utf8.RuneError && n == 1 || s[i:i+n] == textEscape {
			for _, c := range []byte(s[i : i+n]) {
				b.WriteString(textEscape)
				b.WriteString(hex.EncodeToString([]byte{c}))
			}
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// unescapeText gives the text of which escapeText made this one. What it cannot have made stays as it is.
func unescapeText(s string) string {
	if !strings.Contains(s, textEscape) {
		return s
	}
	var b bytes.Buffer
	for {
		before, rest, found := strings.Cut(s, textEscape)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		if c, err := hex.DecodeString(rest[:min(2, len(rest))]); err == nil && len(c) == 1 {
			b.Write(c)
			s = rest[2:]
		} else {
			b.WriteString(textEscape)
			s = rest
		}
	}
}

type connector struct{ driver.Connector }

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	made, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	conn, ok := made.(*stdlib.Conn)
	if !ok {
		return nil, errors.Join(errors.New("the PostgreSQL driver made a connection of another kind"), made.Close())
	}
	return textConn{conn}, nil
}

type textConn struct{ *stdlib.Conn }

// CheckNamedValue implements driver.NamedValueChecker.
func (c textConn) CheckNamedValue(v *driver.NamedValue) error {
	if valuer, ok := v.Value.(driver.Valuer); ok {
		plain, err := valuer.Value()
		if err != nil {
			return err
		}
		v.Value = plain
	}
	if s, ok := v.Value.(string); ok {
		v.Value = escapeText(s)
	} else if r := reflect.ValueOf(v.Value); r.Kind() == reflect.String {
		v.Value = escapeText(r.String())
	}
	return nil
}

// ExecContext implements driver.ExecerContext.
func (c textConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	res, err := c.Conn.ExecContext(ctx, query, args)
	return res, quiet(err)
}

// QueryContext implements driver.QueryerContext.
func (c textConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return textRowsOf(c.Conn.QueryContext(ctx, query, args))
}

// Prepare implements driver.Conn.
func (c textConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext implements driver.ConnPrepareContext.
func (c textConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	made, err := c.Conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, quiet(err)
	}
	stmt, ok := made.(*stdlib.Stmt)
	if !ok {
		return nil, errors.Join(errors.New("the PostgreSQL driver made a statement of another kind"), made.Close())
	}
	return textStmt{stmt}, nil
}

type textStmt struct{ *stdlib.Stmt }

// ExecContext implements driver.StmtExecContext.
func (s textStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	res, err := s.Stmt.ExecContext(ctx, args)
	return res, quiet(err)
}

// QueryContext implements driver.StmtQueryContext.
func (s textStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return textRowsOf(s.Stmt.QueryContext(ctx, args))
}

type textRows struct{ *stdlib.Rows }

func textRowsOf(made driver.Rows, err error) (driver.Rows, error) {
	if err != nil {
		return nil, quiet(err)
	}
	rows, ok := made.(*stdlib.Rows)
	if !ok {
		return nil, errors.Join(errors.New("the PostgreSQL driver made rows of another kind"), made.Close())
	}
	return textRows{rows}, nil
}

// Next implements driver.Rows.
func (r textRows) Next(dest []driver.Value) error {
	if err := r.Rows.Next(dest); err != nil {
		return quiet(err) // io.EOF among them
	}
	for i, v := range dest {
		if s, ok := v.(string); ok {
			dest[i] = unescapeText(s)
		}
	}
	return nil
}

var errUnfit = errors.New("a parameter is not of the type that the statement expects there")

// quiet takes out of an error what it quotes of rows and parameters: PostgreSQL puts the row that a constraint refuses into the detail, and
// the value that is none of its type into the message; pgx puts the parameter that it cannot encode into its own.
func quiet(err error) error {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		kept := &pgconn.PgError{
			Severity: e.Severity, SeverityUnlocalized: e.SeverityUnlocalized, Code: e.Code, Message: e.Message,
			SchemaName: e.SchemaName, TableName: e.TableName, ColumnName: e.ColumnName, DataTypeName: e.DataTypeName, ConstraintName: e.ConstraintName,
			File: e.File, Line: e.Line, Routine: e.Routine,
		}
		if strings.HasPrefix(e.Code, "22") { // data exceptions quote the value in their message
			kept.Message = "a value is not of its type, or out of its range"
		}
		return kept
	}
	if err != nil && strings.Contains(err.Error(), "failed to encode args[") {
		return errUnfit
	}
	return err
}
