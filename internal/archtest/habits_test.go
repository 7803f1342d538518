package archtest

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// packageState may be variables of a package that change, or inits, and why.
var packageState = map[string]string{
	"node/agent.Mutant":         "it exists under a build tag alone, where the simulation breaks one rule at a time on purpose",
	"replication.Mutant":        "it exists under a build tag alone, where the simulation breaks one rule at a time on purpose",
	"engine/disk.waited":        "Go's processors, which those who wait may keep, are the process's",
	"engine/disk/uring.holding": "the same: one goroutine of the process may keep its processor",
	"node/device/poll.spent":    "the same: for how long one was in use for nothing else",
	"engine/disk.zeroPage":      "zeros to compare with and to copy from; an array has no other way to be written down",
}

// inTests are calls that make tests slow, flaky or blind.
var inTests = []struct{ pkg, name, fix string }{
	{"time", "Sleep", "poll with a deadline, wait on a channel, or use testing/synctest"},
}

// callOf gives the package (or variable) and the name of a call such as a.B().
func callOf(n ast.Node) (on, name string) {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return "", ""
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok {
		return "", sel.Sel.Name
	}
	return id.Name, sel.Sel.Name
}

func TestTestsDoNotSleepOrSkip(t *testing.T) {
	for _, f := range handWritten(t) {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			on, name := callOf(n)
			if slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, name) && slices.Contains([]string{"t", "b", "tb", "f"}, on) {
				t.Errorf("%s: a test is skipped: make what it needs (scripts/prerequisites.sh installs it), or remove the test", f.at(n))
			}
			for _, bad := range inTests {
				if f.test && on == bad.pkg && name == bad.name {
					t.Errorf("%s: %s.%s in a test: %s", f.at(n), on, name, bad.fix)
				}
			}
			return true
		})
	}
}

func TestNothingIsLeftToDo(t *testing.T) {
	left := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XXX)\b`)
	for _, f := range handWritten(t) {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if m := left.FindString(c.Text); m != "" {
					t.Errorf("%s: a comment says %s: do it now, or say in the tracker what is to be done", f.at(c), m)
				}
			}
		}
	}
}

// Deciding by an error's text breaks with the next wording.
func TestErrorsAreNotReadAsText(t *testing.T) {
	for _, f := range handWritten(t) {
		if f.test || strings.HasSuffix(f.ast.Name.Name, "test") {
			continue // there the wording may be what is tested
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			on, name := callOf(n)
			if on != "strings" || !slices.Contains([]string{"Contains", "HasPrefix", "HasSuffix", "EqualFold", "Index"}, name) {
				return true
			}
			for _, arg := range n.(*ast.CallExpr).Args {
				if _, method := callOf(arg); method == "Error" {
					t.Errorf("%s: an error's text decides: give the error a holdfast.Kind and use errors.Is", f.at(n))
				}
			}
			return true
		})
	}
}

func TestNoInits(t *testing.T) {
	allowed := allow(t, "packageState", inits())
	for _, f := range handWritten(t) {
		for _, decl := range f.ast.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && d.Recv == nil && d.Name.Name == "init" && !allowed.has(f.path+":init") {
				t.Errorf("%s: an init function: call it from where the thing is made, or put %q on the list packageState with a reason",
					f.at(d), f.path+":init")
			}
		}
	}
}

// inits are the entries of packageState that are for init functions; variables
// are the others.
func inits() map[string]string     { return pick(true) }
func variables() map[string]string { return pick(false) }

func pick(init bool) map[string]string {
	out := map[string]string{}
	for what, why := range packageState {
		if (len(what) > 5 && what[len(what)-5:] == ":init") == init {
			out[what] = why
		}
	}
	return out
}

// TestNoPackageState finds variables of packages that can change. One that is
// set where it is declared and never written or lent out in its package is a
// table, an error or a compiled pattern, which is fine; so is a sync.Pool.
func TestNoPackageState(t *testing.T) {
	allowed := allow(t, "packageState", variables())
	byPackage := map[string][]*file{}
	for _, f := range handWritten(t) {
		if !f.test {
			byPackage[f.dir] = append(byPackage[f.dir], f)
		}
	}
	for _, files := range byPackage {
		for _, f := range files {
			for _, v := range packageVariables(f) {
				written := v.empty || v.shared || slices.ContainsFunc(files, func(g *file) bool { return writes(g, v.name) })
				if what := f.dir + "." + v.name; written && !allowed.has(what) {
					t.Errorf("%s: the package variable %s can change: make it a member of what uses it, a constant, or a function's result; "+
						"or put %q on the list packageState with a reason", f.at(v.node), v.name, what)
				}
			}
		}
	}
}

type packageVariable struct {
	name   string
	node   ast.Node
	empty  bool // it has no value at first
	shared bool // a lock, a channel, or made to be filled
}

func packageVariables(f *file) []packageVariable {
	var out []packageVariable
	for _, decl := range f.ast.Decls {
		d, ok := decl.(*ast.GenDecl)
		if !ok || d.Tok != token.VAR {
			continue
		}
		for _, spec := range d.Specs {
			s := spec.(*ast.ValueSpec)
			for i, id := range s.Names {
				if id.Name == "_" || isEmbedded(d, s) || isPool(s.Type) {
					continue
				}
				v := packageVariable{name: id.Name, node: id, empty: len(s.Values) == 0}
				if i < len(s.Values) {
					if l, ok := s.Values[i].(*ast.CompositeLit); ok && isPool(l.Type) {
						continue
					}
					if c, ok := s.Values[i].(*ast.CallExpr); ok {
						fn, isIdent := c.Fun.(*ast.Ident)
						v.shared = isIdent && (fn.Name == "make" || fn.Name == "new")
					}
				}
				out = append(out, v)
			}
		}
	}
	return out
}

// isEmbedded says whether the variable is filled by go:embed.
func isEmbedded(d *ast.GenDecl, s *ast.ValueSpec) bool {
	for _, g := range []*ast.CommentGroup{d.Doc, s.Doc} {
		if g == nil {
			continue
		}
		for _, c := range g.List {
			if len(c.Text) > 10 && c.Text[:10] == "//go:embed" {
				return true
			}
		}
	}
	return false
}

// isPool says whether a type is sync.Pool or an array of them.
func isPool(e ast.Expr) bool {
	if a, ok := e.(*ast.ArrayType); ok {
		e = a.Elt
	}
	return typeName(e) == "sync.Pool"
}

// typeName is "pkg.Name" or "Name"; "" for other types.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		if id, ok := e.X.(*ast.Ident); ok {
			return id.Name + "." + e.Sel.Name
		}
	}
	return ""
}

// writes says whether a file assigns to a variable or its parts, or takes its
// address. A local variable of the same name counts as well; rename one of them.
func writes(f *file, name string) bool {
	found := false
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, left := range n.Lhs {
				found = found || n.Tok != token.DEFINE && rootName(left) == name
			}
		case *ast.IncDecStmt:
			found = found || rootName(n.X) == name
		case *ast.UnaryExpr:
			found = found || n.Op == token.AND && rootName(n.X) == name
		case *ast.CallExpr:
			fn, ok := n.Fun.(*ast.Ident)
			if ok && (fn.Name == "delete" || fn.Name == "clear") && len(n.Args) > 0 {
				found = found || rootName(n.Args[0]) == name
			}
		}
		return !found
	})
	return found
}

// rootName is x for x, x.y, x[i], *x and what is made of these.
func rootName(e ast.Expr) string {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x.Name
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return ""
		}
	}
}
