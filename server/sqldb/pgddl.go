package sqldb

import (
	"fmt"
	"slices"
	"strings"
)

// postgresDDL writes a migration, which is in SQLite's words, in PostgreSQL's. It knows the words that migrations use and no other: one
// that it does not know is an error, never passed on in the hope that it means the same. Keywords are in capitals and names are not, as
// everywhere in this house's SQL.
//
// What differs is this. Types: INTEGER has 64 bits in SQLite, so it is BIGINT; BLOB is BYTEA; TEXT is compared by its bytes, so it is TEXT
// COLLATE "C". A column INTEGER PRIMARY KEY, which numbers rows that come without a number, is an identity; WITHOUT ROWID says nothing
// there. A trigger is a function and a trigger that calls it. In ON CONFLICT ... DO UPDATE SET a bare column on the right is qualified by
// its table, since PostgreSQL also sees the row that was to be inserted. SUM of a comparison counts, since a comparison is no number. A
// subquery in FROM gets a name.
func postgresDDL(text string) (statements []string, err error) {
	tokens, err := tokenize(text)
	if err != nil {
		return nil, err
	}
	for _, s := range split(tokens) {
		out, err := translate(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", excerpt(s), err)
		}
		statements = append(statements, out...)
	}
	return statements, nil
}

type tokenKind byte

const (
	tokenWord   tokenKind = iota // KEYWORD
	tokenName                    // table or column, or a function when "(" follows
	tokenNumber                  // digits
	tokenText                    // 'text', quotes included
	tokenSign                    // operators and punctuation
)

type token struct {
	kind tokenKind
	text string
}

func (t token) is(texts ...string) bool { return t.kind != tokenText && slices.Contains(texts, t.text) }

// keywords are the words of which it is known that both engines take them alike, or what becomes of them.
var keywords = strings.Fields(`ADD AFTER ALTER AND AS ASC AUTOINCREMENT BEGIN BETWEEN BLOB BY CASCADE CASE CHECK COLUMN CONFLICT CREATE
	DEFAULT DELETE DESC DISTINCT DO DROP EACH ELSE END EXISTS FOR FROM GROUP HAVING IN INDEX INSERT INTEGER INTO IS JOIN KEY LEFT NEW NOT
	NOTHING NULL OF OLD ON OR ORDER OVER PARTITION PRIMARY REFERENCES ROW ROWID SELECT SET TABLE TEXT THEN TRIGGER UNION UNIQUE UPDATE VALUES
	WHEN WHERE WITHOUT ALL
	COALESCE COUNT MAX MIN ROW_NUMBER SUM`)

// functions are those in small letters.
var functions = []string{"length"}

const signs = "( ) , . ; = <> < <= > >= + - * / ||"

func tokenize(text string) (out []token, err error) {
	letter := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' }
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	for i := 0; i < len(text); {
		c, from := text[i], i
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		case strings.HasPrefix(text[i:], "--"):
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case letter(c):
			for i < len(text) && (letter(text[i]) || digit(text[i])) {
				i++
			}
			word := text[from:i]
			switch {
			case word == strings.ToLower(word):
				out = append(out, token{tokenName, word})
			case slices.Contains(keywords, word):
				out = append(out, token{tokenWord, word})
			default:
				return nil, fmt.Errorf("word %q is not known to the translation for PostgreSQL: use one that is, or teach it there what the word means", word)
			}
		case digit(c):
			for i < len(text) && digit(text[i]) {
				i++
			}
			if i < len(text) && (letter(text[i]) || text[i] == '.') {
				return nil, fmt.Errorf("number %q: only whole decimal numbers are known to the translation for PostgreSQL", text[from:i+1])
			}
			out = append(out, token{tokenNumber, text[from:i]})
		case c == '\'':
			for i++; ; i++ {
				end := strings.IndexByte(text[i:], '\'')
				if end < 0 {
					return nil, fmt.Errorf("text %.20q does not end", text[from:])
				}
				if i += end + 1; i == len(text) || text[i] != '\'' {
					break
				}
			}
			out = append(out, token{tokenText, text[from:i]})
		default:
			sign := text[i:min(i+2, len(text))]
			if !slices.Contains(strings.Fields(signs), sign) {
				sign = text[i : i+1]
			}
			if !slices.Contains(strings.Fields(signs), sign) {
				return nil, fmt.Errorf("sign %q is not known to the translation for PostgreSQL", sign)
			}
			i += len(sign)
			out = append(out, token{tokenSign, sign})
		}
	}
	return out, nil
}

// split cuts at semicolons, but not within a trigger's BEGIN ... END.
func split(tokens []token) (out [][]token) {
	from, inside := 0, 0
	for i, t := range tokens {
		switch {
		case t.is("BEGIN", "CASE"):
			inside++
		case t.is("END"):
			inside--
		case t.is(";") && inside == 0:
			if i > from {
				out = append(out, tokens[from:i])
			}
			from = i + 1
		}
	}
	if from < len(tokens) {
		out = append(out, tokens[from:])
	}
	return out
}

func translate(s []token) ([]string, error) {
	for i, t := range s {
		if t.kind == tokenName && next(s, i).is("(") && !slices.Contains(functions, t.text) && !namesColumns(s, i) {
			return nil, fmt.Errorf("function %q is not known to the translation for PostgreSQL", t.text)
		}
	}
	switch {
	case begins(s, "CREATE", "TABLE"), begins(s, "ALTER", "TABLE"):
		out, err := table(s)
		return []string{out}, err
	case begins(s, "CREATE", "TRIGGER"):
		return trigger(s)
	case begins(s, "CREATE", "INDEX"), begins(s, "CREATE", "UNIQUE", "INDEX"), begins(s, "DROP", "TABLE"), begins(s, "DROP", "INDEX"):
		return []string{write(s)}, nil
	case begins(s, "INSERT"), begins(s, "UPDATE"), begins(s, "DELETE"):
		return []string{write(rows(s))}, nil
	}
	return nil, fmt.Errorf("a statement of this kind is not known to the translation for PostgreSQL")
}

// namesColumns: a "(" follows a table's name where its columns are listed.
func namesColumns(s []token, i int) bool {
	return i > 0 && s[i-1].is("TABLE", "INTO", "ON", "REFERENCES")
}

func next(s []token, i int) token {
	if i+1 < len(s) {
		return s[i+1]
	}
	return token{}
}

func begins(s []token, words ...string) bool {
	for i, w := range words {
		if i >= len(s) || !s[i].is(w) {
			return false
		}
	}
	return true
}

// table translates CREATE TABLE, and ALTER TABLE ... ADD COLUMN.
func table(s []token) (string, error) {
	var out []token
	for i := 0; i < len(s); i++ {
		switch t := s[i]; {
		case t.is("INTEGER") && next(s, i).is("PRIMARY") && next(s, i+1).is("KEY"):
			out = append(out, token{tokenWord, "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"})
			if i += 2; next(s, i).is("AUTOINCREMENT") {
				i++
			}
		case t.is("INTEGER"):
			out = append(out, token{tokenWord, "BIGINT"})
		case t.is("BLOB"):
			out = append(out, token{tokenWord, "BYTEA"})
		case t.is("TEXT"):
			out = append(out, token{tokenWord, `TEXT COLLATE "C"`})
		case t.is("WITHOUT") && next(s, i).is("ROWID"):
			i++
		case t.is("AUTOINCREMENT", "ROWID", "WITHOUT"):
			return "", fmt.Errorf("%s stands where the translation for PostgreSQL does not expect it", t.text)
		default:
			out = append(out, t)
		}
	}
	return write(out), nil
}

// trigger makes a function of a trigger's body, and a trigger that calls it.
func trigger(s []token) ([]string, error) {
	name := next(s, 1).text
	begin := slices.IndexFunc(s, func(t token) bool { return t.is("BEGIN") })
	if begin < 0 || !s[len(s)-1].is("END") || !next(s, 2).is("AFTER") || slices.ContainsFunc(s[:begin], func(t token) bool { return t.is("WHEN") }) {
		return nil, fmt.Errorf("expected CREATE TRIGGER name AFTER event ON table BEGIN statements END")
	}
	var body strings.Builder
	for _, st := range split(s[begin+1 : len(s)-1]) {
		out, err := translate(st)
		if err != nil {
			return nil, err
		}
		body.WriteString(strings.Join(out, ";\n") + ";\n")
	}
	head := s[:begin]
	if n := len(head); n > 3 && head[n-1].is("ROW") {
		head = head[:n-3] // FOR EACH ROW, which SQLite takes for granted
	}
	return []string{
		fmt.Sprintf("CREATE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql AS $trigger$ BEGIN\n%sRETURN NULL;\nEND $trigger$", name, body.String()),
		fmt.Sprintf("%s FOR EACH ROW EXECUTE FUNCTION %s()", write(head), name),
	}, nil
}

// rows translates what reads and writes rows.
func rows(s []token) []token {
	return nameSubqueries(count(qualify(s)))
}

// qualify puts the table before the bare columns on the right of ON CONFLICT ... DO UPDATE SET.
func qualify(s []token) (out []token) {
	updating, left, table := false, false, ""
	if begins(s, "INSERT", "INTO") {
		table = next(s, 1).text
	}
	for i, t := range s {
		if t.is("SET") && i > 0 && s[i-1].is("UPDATE") {
			updating, left = true, true
			out = append(out, t)
			continue
		}
		if updating && t.kind == tokenName && !left && !s[i-1].is(".") && !next(s, i).is(".", "(") {
			out = append(out, token{tokenName, table}, token{tokenSign, "."})
		}
		switch {
		case t.is("="):
			left = false
		case t.is(","):
			left = true
		}
		out = append(out, t)
	}
	return out
}

// count makes SUM(a = b) a sum of ones.
func count(s []token) (out []token) {
	for i := 0; i < len(s); i++ {
		out = append(out, s[i])
		if !s[i].is("SUM") || !next(s, i).is("(") {
			continue
		}
		end := closing(s, i+1)
		inside := s[i+2 : end]
		compares, depth := false, 0
		for _, t := range inside {
			switch {
			case t.is("(", "CASE"):
				depth++
			case t.is(")", "END"):
				depth--
			case t.is("=", "<>", "<", "<=", ">", ">=") && depth == 0:
				compares = true
			}
		}
		if compares {
			out = append(out, token{tokenSign, "("}, token{tokenWord, "CASE WHEN"})
			out = append(out, inside...)
			out = append(out, token{tokenWord, "THEN 1 ELSE 0 END"}, token{tokenSign, ")"})
			i = end
		}
	}
	return out
}

// nameSubqueries names each subquery that stands in FROM without one.
func nameSubqueries(s []token) (out []token) {
	named := make(map[int]bool) // where a name goes: behind this token
	for i, t := range s {
		if t.is("FROM", "JOIN") && next(s, i).is("(") {
			if end := closing(s, i+1); !next(s, end).is("AS") && next(s, end).kind != tokenName || end+1 >= len(s) {
				named[end] = true
			}
		}
	}
	for i, t := range s {
		out = append(out, t)
		if named[i] {
			out = append(out, token{tokenWord, "AS"}, token{tokenName, fmt.Sprintf("sub_%d", i)})
		}
	}
	return out
}

// closing is where the parenthesis at i closes.
func closing(s []token, i int) int {
	depth := 0
	for ; i < len(s); i++ {
		switch {
		case s[i].is("("):
			depth++
		case s[i].is(")"):
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return len(s) - 1
}

func write(s []token) string {
	var b strings.Builder
	for i, t := range s {
		if i > 0 && !t.is(".", ",", ")", ";") && !s[i-1].is(".", "(") {
			b.WriteByte(' ')
		}
		b.WriteString(t.text)
	}
	return b.String()
}

func excerpt(s []token) string {
	return write(s[:min(len(s), 6)]) + " ..."
}
