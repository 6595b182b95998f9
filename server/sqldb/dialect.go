package sqldb

import (
	"strconv"
	"strings"
)

// The statements of the domains are in the SQL that SQLite and PostgreSQL share. What the two do not share in a word is written by these.

// Flag is a truth as the schema's columns keep it: 1 or 0. PostgreSQL takes no boolean for a number.
func Flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Greater is the greatest of some expressions, none of them NULL: SQLite calls it MAX, PostgreSQL GREATEST.
func Greater(of ...string) string {
	out := of[0]
	for _, next := range of[1:] {
		out = "CASE WHEN " + out + " > " + next + " THEN " + out + " ELSE " + next + " END"
	}
	return out
}

// Raised is, in an upsert, the greater of a column that is there and of the row that was to be inserted.
func Raised(table, column string) string { return Greater(table+"."+column, "excluded."+column) }

// Parameters are n parameters of a statement from $first on, as a list. Both engines take some 30,000 of them.
func Parameters(first, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(first + i))
	}
	return b.String()
}
