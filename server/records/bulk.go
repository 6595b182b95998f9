package records

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"wardlink/server/sqldb"
)

// bulk writes many rows with few statements: each is a round trip to PostgreSQL, and some microseconds of overhead on SQLite. A statement takes a
// power of two of rows, so that there are few different ones, and all can be prepared beforehand.
type bulk struct {
	before, after string // what stands around the rows in the statement
	row           string // one row of parameters, each "?", and "CAST(? AS BIGINT)" where the statement does not say of what type it is
}

// The most rows of one statement. SQLite's driver looks for each parameter among all of a statement, so that more rows cost more than they save.
const (
	mostPostgres = 128
	mostSQLite   = 16
)

// statement is the one for n rows. Its parameters are numbered for PostgreSQL. For SQLite they are not: its driver would compare the numbers'
// texts, of each with each. And there it says OR FAIL, so that SQLite keeps no journal of the statement beside that of the transaction: a
// statement that fails ends the transaction anyway.
func (b bulk) statement(n int, numbered bool) string {
	var text strings.Builder
	before := b.before
	if !numbered {
		before = strings.Replace(strings.Replace(before, "INSERT INTO", "INSERT OR FAIL INTO", 1), "UPDATE ", "UPDATE OR FAIL ", 1)
	}
	text.WriteString(before)
	number := 0
	for i := range n {
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteByte('(')
		for j, part := range strings.Split(b.row, "?") {
			switch {
			case j == 0:
			case numbered:
				number++
				text.WriteString(sqldb.Parameters(number, 1))
			default:
				text.WriteByte('?')
			}
			text.WriteString(part)
		}
		text.WriteByte(')')
	}
	text.WriteString(b.after)
	return text.String()
}

// sized are the statements of a bulk, the largest first.
type sized []struct {
	args  int // parameters
	query string
}

var allBulks = []bulk{newBatches, storedBatches, storeBatches, findBatches, insertMessages, insertReadings, insertWaveforms, extendRuns, addLanes, addStored, addSources}

// sizes are the statements of at most that many rows.
func (b bulk) sizes(numbered bool, most int) (of sized) {
	for n := most; n > 0; n /= 2 {
		of = append(of, struct {
			args  int
			query string
		}{n * strings.Count(b.row, "?"), b.statement(n, numbered)})
	}
	return of
}

// prepareBulks makes the statements of all bulks ready, once per database.
func (in *interner) prepareBulks(ctx context.Context, db *sqldb.DB) error {
	numbered, most := sqldb.IsPostgres(db.Path()), mostSQLite
	if numbered {
		most = mostPostgres
	}
	for _, b := range allBulks {
		of := b.sizes(numbered, most)
		for _, s := range of {
			if err := in.prepare(ctx, db, s.query); err != nil {
				return err
			}
		}
		in.bulks[b] = of
	}
	return nil
}

// steps calls do with as many of the arguments as one statement takes, until none is left.
func (in *interner) steps(b bulk, args []any, do func(query string, args []any) error) error {
	statements := in.bulks[b]
	for len(args) > 0 {
		for statements[0].args > len(args) {
			statements = statements[1:]
		}
		n := statements[0].args
		if err := do(statements[0].query, args[:n]); err != nil {
			return err
		}
		args = args[n:]
	}
	return nil
}

// write runs the statements for rows of which args are the parameters, and gives how many rows they changed.
func (in *interner) write(tx *sql.Tx, b bulk, args []any) (changed int64, err error) {
	err = in.steps(b, args, func(query string, args []any) error {
		n, err := affected(in.exec(tx, query, args...))
		changed += n
		return err
	})
	return changed, err
}

// returned is write for statements that return something of each row that they changed.
func (in *interner) returned(tx *sql.Tx, b bulk, args []any, scan func(*sql.Rows) error) error {
	return in.steps(b, args, func(query string, args []any) error {
		rows, err := tx.StmtContext(noCancel, in.stmts[query]).QueryContext(noCancel, args...)
		if err != nil {
			return err
		}
		for rows.Next() {
			if err := scan(rows); err != nil {
				return errors.Join(err, rows.Close())
			}
		}
		return errors.Join(rows.Err(), rows.Close())
	})
}
