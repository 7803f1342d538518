package scenario

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// TestEveryLessonHasItsTest checks docs/field-lessons.md: no row is missing or
// empty, every test it names exists, and every story is told of.
func TestEveryLessonHasItsTest(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "field-lessons.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, line := range strings.Split(string(page), "\n") {
		cells := strings.Split(line, " | ")
		if m := regexp.MustCompile(`^\| ([BC][0-9]+) \| `).FindStringSubmatch(line); m != nil {
			rows[m[1]] = cells[len(cells)-1]
		}
	}
	for letter, n := range map[string]int{"B": 48, "C": 46} {
		for i := 1; i <= n; i++ {
			if len(strings.Trim(rows[fmt.Sprint(letter, i)], " |")) < 6 {
				t.Errorf("row %s%d says nothing", letter, i)
			}
		}
	}
	exist := testNames(t)
	for name := range exist {
		if strings.HasPrefix(name, "TestStories/") && !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("no row names %s", name)
		}
	}
	for _, m := range regexp.MustCompile("`(Test[A-Za-z0-9_]+(/[a-z0-9-]+)?)`").FindAllStringSubmatch(string(page), -1) {
		if !exist[m[1]] {
			t.Errorf("there is no test %s", m[1])
		}
	}
}

// testNames are those of all tests in the tree, and of all stories.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	decl := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range decl.FindAllStringSubmatch(string(text), -1) {
			names[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	files, err := fs.Glob(stories, "stories/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		names["TestStories/"+strings.TrimSuffix(filepath.Base(f), ".txt")] = true
	}
	return names
}
