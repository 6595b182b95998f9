package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// variable names the check that is taken out of a program of compile.
const variable = "WARDLINK_MUTANT"

// switches is the file that goes into the package beside its own.
const switches = `package %s

import (
	"os"
	"strconv"
)

var mutant, _ = strconv.Atoi(os.Getenv("` + variable + `"))

func mutated(n int) bool { return mutant == n }
`

// check is one condition on which something is refused, or without which it is not accepted.
type check struct {
	id    int
	where string // file:line
	in    string // function
	text  string

	excused string // why nobody can miss it, from the comment of its line; "": it must be missed
}

// insertion is text that goes into a source before the byte at.
type insertion struct {
	at   int
	text string
}

// finder collects the checks of one file.
type finder struct {
	fset   *token.FileSet
	source []byte
	next   *int
	checks []check
	edits  []insertion

	in      string         // the function that is walked
	results *ast.FieldList // of the function or literal that is walked
}

// find gives the checks of a package and, by path, its sources with each of them behind its switch.
func find(t target) ([]check, map[string][]byte, error) {
	files, err := filepath.Glob(filepath.Join(t.dir, "*.go"))
	if err != nil {
		return nil, nil, err
	}
	var checks []check
	sources := map[string][]byte{}
	missing := slices.Clone(t.funcs)
	id := 1
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, err
		}
		f := &finder{fset: token.NewFileSet(), source: source, next: &id}
		file, err := parser.ParseFile(f.fset, path, source, parser.SkipObjectResolution)
		if err != nil {
			return nil, nil, err
		}
		for _, d := range file.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && d.Body != nil && (t.funcs == nil || slices.Contains(t.funcs, d.Name.Name)) {
				missing = slices.DeleteFunc(missing, func(name string) bool { return name == d.Name.Name })
				f.in = d.Name.Name
				f.function(d.Type, d.Body)
			}
		}
		checks = append(checks, f.checks...)
		sources[path] = f.edited()
		sources[filepath.Join(t.dir, "mutate_switches.go")] = fmt.Appendf(nil, switches, file.Name.Name)
	}
	if len(missing) > 0 { // it was renamed, and its checks would go untried
		return nil, nil, fmt.Errorf("%s: no function %s", t.dir, strings.Join(missing, ", "))
	}
	return checks, sources, nil
}

// edited is the source with all insertions.
func (f *finder) edited() []byte {
	slices.SortStableFunc(f.edits, func(a, b insertion) int { return a.at - b.at })
	var out []byte
	last := 0
	for _, e := range f.edits {
		out = append(append(out, f.source[last:e.at]...), e.text...)
		last = e.at
	}
	return append(out, f.source[last:]...)
}

// function walks a function or a literal.
func (f *finder) function(of *ast.FuncType, body *ast.BlockStmt) {
	before := f.results
	f.results = of.Results
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			f.function(n.Type, n.Body)
			return false
		case *ast.IfStmt:
			f.guard(n.Cond, n.Body.List)
		case *ast.SwitchStmt:
			for _, c := range n.Body.List {
				f.clause(c.(*ast.CaseClause), n.Tag == nil)
			}
		case *ast.TypeSwitchStmt:
			for _, c := range n.Body.List {
				f.clause(c.(*ast.CaseClause), false)
			}
		case *ast.ReturnStmt:
			if f.kind() == "bool" && len(n.Results) == 1 {
				for _, leaf := range leaves(n.Results[0], token.LAND) {
					f.accept(leaf, "return")
				}
			}
		}
		return true
	})
	f.tail(body)
	f.results = before
}

// kind is the type of the last result, where a verdict stands: "error", "bool" or "".
func (f *finder) kind() string {
	if f.results == nil || len(f.results.List) == 0 {
		return ""
	}
	if last, ok := f.results.List[len(f.results.List)-1].Type.(*ast.Ident); ok && (last.Name == "error" || last.Name == "bool") {
		return last.Name
	}
	return ""
}

// verdict says how a block ends: whether it refuses or accepts, and in which words. Neither: it is no check.
func (f *finder) verdict(body []ast.Stmt) (refuses, accepts bool, words string) {
	if len(body) == 0 || f.kind() == "" {
		return false, false, ""
	}
	switch last := body[len(body)-1].(type) {
	case *ast.BranchStmt:
		return last.Tok == token.CONTINUE, false, "continue"
	case *ast.ReturnStmt:
		if len(last.Results) != f.results.NumFields() {
			return false, false, ""
		}
		words = f.words(last.Results[len(last.Results)-1])
		accepts = words == "nil" || words == "true"
		return !accepts, accepts, words
	}
	return false, false, ""
}

// guard is an if: each alternative for which it refuses is a check, and so is each condition for which it accepts.
func (f *finder) guard(cond ast.Expr, body []ast.Stmt) {
	switch refuses, accepts, words := f.verdict(body); {
	case refuses:
		for _, leaf := range leaves(cond, token.LOR) {
			f.refuse(leaf, words)
		}
	case accepts:
		for _, leaf := range leaves(cond, token.LAND) {
			f.accept(leaf, words)
		}
	}
}

// clause is one case of a switch. Without a tag its expressions are conditions; otherwise the whole clause is one check.
func (f *finder) clause(c *ast.CaseClause, conditions bool) {
	if conditions && c.List != nil {
		for _, e := range c.List {
			f.guard(e, c.Body)
		}
		return
	}
	if refuses, _, words := f.verdict(c.Body); refuses {
		f.insert(c.Body[0].Pos(), fmt.Sprintf("if mutated(%d) { break }; ", f.add(c, "case → "+words)))
	}
}

// tail is a refusal of all that came through a loop or a switch.
func (f *finder) tail(body *ast.BlockStmt) {
	n := len(body.List)
	if n < 2 || f.kind() != "error" {
		return
	}
	switch body.List[n-2].(type) {
	case *ast.ForStmt, *ast.RangeStmt, *ast.SwitchStmt, *ast.TypeSwitchStmt:
	default:
		return
	}
	refuses, _, words := f.verdict(body.List[n-1:])
	if !refuses {
		return
	}
	var zero []string
	for _, field := range f.results.List {
		for range max(len(field.Names), 1) {
			zero = append(zero, "*new("+f.words(field.Type)+")")
		}
	}
	f.insert(body.List[n-1].Pos(), fmt.Sprintf("if mutated(%d) { return %s }; ", f.add(body.List[n-1], "otherwise → "+words), strings.Join(zero, ", ")))
}

// refuse takes a condition away on which something is refused.
func (f *finder) refuse(e ast.Expr, words string) {
	id := f.add(e, f.words(e)+" → "+words)
	f.insert(e.Pos(), fmt.Sprintf("(!mutated(%d) && (", id))
	f.insert(e.End(), "))")
}

// accept takes a condition away without which something is not accepted.
func (f *finder) accept(e ast.Expr, words string) {
	id := f.add(e, f.words(e)+" → "+words)
	f.insert(e.Pos(), fmt.Sprintf("(mutated(%d) || (", id))
	f.insert(e.End(), "))")
}

func (f *finder) add(at ast.Node, text string) int {
	id := *f.next
	*f.next++
	p := f.fset.Position(at.Pos())
	line, _, _ := bytes.Cut(f.source[p.Offset:], []byte("\n"))
	_, excused, _ := bytes.Cut(line, []byte("// cannot fail: "))
	f.checks = append(f.checks, check{id: id, where: fmt.Sprintf("%s:%d", filepath.Base(p.Filename), p.Line), in: f.in, text: text, excused: string(excused)})
	return id
}

func (f *finder) insert(at token.Pos, text string) {
	f.edits = append(f.edits, insertion{f.fset.Position(at).Offset, text})
}

// words is an expression on one line.
func (f *finder) words(e ast.Expr) string {
	var b strings.Builder
	if err := printer.Fprint(&b, f.fset, e); err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// leaves are the operands of a chain of one operator.
func leaves(e ast.Expr, op token.Token) []ast.Expr {
	if p, ok := e.(*ast.ParenExpr); ok {
		return leaves(p.X, op)
	}
	if b, ok := e.(*ast.BinaryExpr); ok && b.Op == op {
		return append(leaves(b.X, op), leaves(b.Y, op)...)
	}
	return []ast.Expr{e}
}

// writeOverlay writes the sources to work, and beside them the file by which go build takes them for those of dir.
func writeOverlay(dir, work string, sources map[string][]byte) (string, error) {
	replace := map[string]string{}
	for path, source := range sources {
		whole, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		to := filepath.Join(work, filepath.Base(path))
		if err := os.WriteFile(to, source, 0o600); err != nil {
			return "", err
		}
		replace[whole] = to
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(work, "overlay.json")
	return overlay, os.WriteFile(overlay, data, 0o600)
}
