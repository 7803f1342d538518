package archtest

import (
	"go/ast"
	"strings"
	"testing"
)

// The limits. Functions are about 40 lines; these are where it is too much.
const (
	maxFuncLines    = 80
	maxFileLines    = 500
	maxMethods      = 7
	minCommentLines = 3
)

// longFunctions may be longer than maxFuncLines: file:function, and why.
var longFunctions = map[string]string{
	"controller/lifecycle/crash_test.go:operations":                       "a table of all operations, each of which is crashed at each step",
	"internal/testcluster/controller_test.go:TestControllerWithRealNodes": "one volume's story from its creation to its tombstones, in order",
}

// longFiles may be longer than maxFileLines, and why.
var longFiles = map[string]string{}

// wideInterfaces may have more than maxMethods methods of their own, and why.
var wideInterfaces = map[string]string{}

// funcName is a function's name with its receiver's type: "Primary.Submit".
func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return d.Name.Name
	}
	recv := d.Recv.List[0].Type
	if p, ok := recv.(*ast.StarExpr); ok {
		recv = p.X
	}
	if g, ok := recv.(*ast.IndexExpr); ok {
		recv = g.X
	}
	if id, ok := recv.(*ast.Ident); ok {
		return id.Name + "." + d.Name.Name
	}
	return d.Name.Name
}

func TestFunctionSizes(t *testing.T) {
	allowed := allow(t, "longFunctions", longFunctions)
	for _, f := range handWritten(t) {
		for _, decl := range f.ast.Decls {
			d, ok := decl.(*ast.FuncDecl)
			if !ok || d.Body == nil {
				continue
			}
			lines := f.fset.Position(d.End()).Line - f.fset.Position(d.Pos()).Line + 1
			if what := f.path + ":" + funcName(d); lines > maxFuncLines && !allowed.has(what) {
				t.Errorf("%s: %s has %d lines, at most %d are allowed: divide it by what it does, "+
					"or put %q on the list longFunctions with a reason", f.at(d), funcName(d), lines, maxFuncLines, what)
			}
		}
	}
}

func TestFileSizes(t *testing.T) {
	allowed := allow(t, "longFiles", longFiles)
	for _, f := range handWritten(t) {
		if f.lines > maxFileLines && !allowed.has(f.path) {
			t.Errorf("%s has %d lines, at most %d are allowed: divide it by duty, or put it on the list longFiles with a reason",
				f.path, f.lines, maxFileLines)
		}
	}
}

func TestInterfaceSizes(t *testing.T) {
	allowed := allow(t, "wideInterfaces", wideInterfaces)
	for _, f := range handWritten(t) {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			s, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			i, ok := s.Type.(*ast.InterfaceType)
			if !ok {
				return true
			}
			methods := 0
			for _, m := range i.Methods.List {
				methods += len(m.Names) // an embedded interface has no name here
			}
			if what := f.dir + "." + s.Name.Name; methods > maxMethods && !allowed.has(what) {
				t.Errorf("%s: the interface %s has %d methods, at most %d are allowed: let each user own the few that it needs, "+
					"compose small ones, or put %q on the list wideInterfaces with a reason", f.at(s), s.Name.Name, methods, maxMethods, what)
			}
			return true
		})
	}
}

func TestPackageComments(t *testing.T) {
	docs := map[string][]*file{}
	hasCode := map[string]*file{} // a file of each package, not of its external test
	for _, f := range handWritten(t) {
		if f.ast.Doc != nil {
			docs[f.dir] = append(docs[f.dir], f)
		}
		if hasCode[f.dir] == nil || hasCode[f.dir].test {
			hasCode[f.dir] = f
		}
	}
	for dir, some := range hasCode {
		name := strings.TrimSuffix(some.ast.Name.Name, "_test")
		have := docs[dir]
		if len(have) != 1 {
			var paths []string
			for _, f := range have {
				paths = append(paths, f.path)
			}
			t.Errorf("the package in %s has %d package comments %v, it needs exactly one (in doc.go or the main file): "+
				"what it is, what it promises, what it does not, which goroutines it owns", dir, len(have), paths)
			continue
		}
		text := strings.TrimSpace(have[0].ast.Doc.Text())
		want := "Package " + name + " "
		if name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(text, want) {
			t.Errorf("%s: the package comment begins with %.40q: begin it with %q", have[0].path, text, want)
		}
		if lines := strings.Count(text, "\n") + 1; lines < minCommentLines {
			t.Errorf("%s: the package comment has %d lines, at least %d are wanted: what the package is, what it promises, "+
				"what it does not, which goroutines it owns", have[0].path, lines, minCommentLines)
		}
	}
}
