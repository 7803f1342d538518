package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const modulePath = "github.com/holdfast-storage/holdfast"

// file is one Go file of the module.
type file struct {
	path      string // from the module's root, with slashes
	dir       string // "." for the root
	lines     int
	test      bool // *_test.go
	generated bool
	ast       *ast.File
	fset      *token.FileSet
}

// at is a position for a message.
func (f *file) at(n ast.Node) string {
	return f.path + ":" + strconv.Itoa(f.fset.Position(n.Pos()).Line)
}

// imports lists the import paths; those of this module without its path, "."
// for the root.
func (f *file) imports() []string {
	var out []string
	for _, s := range f.ast.Imports {
		p, _ := strconv.Unquote(s.Path.Value)
		if p == modulePath {
			p = "."
		}
		out = append(out, strings.TrimPrefix(p, modulePath+"/"))
	}
	return out
}

// module parses the module once for all tests.
var module = sync.OnceValues(func() ([]*file, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	var files []*file
	fset := token.NewFileSet()
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if rel != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "third_party" || rel == "build") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parse(fset, p, filepath.ToSlash(rel))
		if err == nil {
			files = append(files, f)
		}
		return err
	})
	return files, err
})

func parse(fset *token.FileSet, p, rel string) (*file, error) {
	text, err := os.ReadFile(p)
	if err != nil {
		return nil, err
	}
	tree, err := parser.ParseFile(fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	return &file{path: rel, dir: path.Dir(rel), lines: strings.Count(string(text), "\n"), test: strings.HasSuffix(rel, "_test.go"),
		generated: ast.IsGenerated(tree), ast: tree, fset: fset}, nil
}

// handWritten gives all files but generated ones.
func handWritten(t *testing.T) []*file {
	t.Helper()
	files, err := module()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d Go files were found: the module's root is not where it is looked for", len(files))
	}
	return slices.DeleteFunc(slices.Clone(files), func(f *file) bool { return f.generated })
}

// exceptions notes which entries of a list are needed, and complains about the
// others.
type exceptions struct {
	t    *testing.T
	name string
	list map[string]string // what: why
	used map[string]bool
}

func allow(t *testing.T, name string, list map[string]string) *exceptions {
	e := &exceptions{t, name, list, map[string]bool{}}
	t.Cleanup(func() {
		for what, why := range list {
			switch {
			case why == "":
				t.Errorf("%s lists %s without a reason: say why", name, what)
			case !e.used[what]:
				t.Errorf("%s lists %s, which needs no exception any more: take it off the list", name, what)
			}
		}
	})
	return e
}

func (e *exceptions) has(what string) bool {
	_, ok := e.list[what]
	if ok {
		e.used[what] = true
	}
	return ok
}
