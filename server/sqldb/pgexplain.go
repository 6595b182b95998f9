package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// postgresMends are said for what an operator can do something about, by SQLSTATE or by its class (PostgreSQL's documentation, Appendix A).
// All of them are conditions of machine, server or login, not of the data in hand.
var postgresMends = map[string]string{
	"08":    "the connection is lost; it is made again by itself once PostgreSQL answers",
	"28":    "PostgreSQL refuses the login; check the role, its password and pg_hba.conf",
	"3D000": "there is no database of that name; check the URL",
	"25006": "PostgreSQL takes no writes, as a standby does; point the URL at the primary",
	"40001": "another transaction was in the way; it is tried again",
	"40P01": "another transaction was in the way; it is tried again",
	"0A000": mendSchema,
	"3F000": mendSchema,
	"42703": mendSchema,
	"42804": mendSchema,
	"42883": mendSchema,
	"42P01": mendSchema,
	"42501": "the login may not do that; check which URL this process was given",
	"53":    "PostgreSQL is short of memory or connections; look at its log, and at max_connections beside OPERATING.md's arithmetic",
	"53100": "PostgreSQL's disk is full; free space on it or give it a larger one",
	"55P03": "another process writes and does not end; look at pg_stat_activity for a transaction that stands still",
	"55006": "PostgreSQL is busy with that; wait and try again",
	"57":    "PostgreSQL was stopped or stops; it is used again by itself once it is back",
	"57014": "a statement took too long; look at PostgreSQL's log and load",
	"58":    "PostgreSQL's disk reports an error; check its log and file system, then restore a backup if it is damaged",
	"F0":    "PostgreSQL's configuration is wrong; look at its log",
	"XX001": "it is damaged; stop the server and restore the last backup",
	"XX002": "it is damaged; stop the server, and REINDEX or restore the last backup",
	"25P03": "a write stood still for a minute and was ended",
	"26000": "prepared statements are not kept; connect to PostgreSQL itself and not through a pooler that shares sessions",
}

// mendSchema is for statements that the schema does not know: never the data's fault, since no statement is made of data.
const mendSchema = "the schema is not this program's; a server of another release changed it: run the same release everywhere, and restart this process"

const mendLost = "PostgreSQL does not answer, or the connection was lost; check that it runs and can be reached; it is used again by itself once it is back"

// postgresMend says what an operator can do about an error of PostgreSQL or of the way there; false: the data in hand is to blame, or the
// error is not PostgreSQL's.
func postgresMend(err error) (string, bool) {
	var unfit *unsuitable
	if errors.As(err, &unfit) {
		return "it is not used as it is", true
	}
	if code := sqlState(err); code != "" {
		if mend, ok := postgresMends[code]; ok {
			return mend, true
		}
		mend, ok := postgresMends[code[:2]]
		return mend, ok
	}
	if lost(err) {
		return mendLost, true
	}
	return "", false
}

// sqlState is the code that PostgreSQL gave an error; empty: it is not PostgreSQL's.
func sqlState(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) && len(e.Code) == 5 {
		return e.Code
	}
	return ""
}

// lost reports whether an error says that there is no connection, or none any more. A caller whose own time is over lost nothing.
func lost(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*pgconn.ConnectError)) {
		return false
	}
	if code := sqlState(err); code != "" {
		return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "57P")
	}
	var connect *pgconn.ConnectError
	var network *net.OpError
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || pgconn.SafeToRetry(err)
}
