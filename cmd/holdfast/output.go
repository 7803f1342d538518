package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
)

// show writes a message as JSON or YAML, or calls table for people.
func (c *cli) show(m proto.Message, table func(w io.Writer)) error {
	if c.format == "table" {
		table(c.out)
		return nil
	}
	raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return holdfast.Wrap("format answer", err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil { // protojson's own spacing varies on purpose
		return holdfast.Wrap("format answer", err)
	}
	text := append(b.Bytes(), '\n')
	if c.format == "yaml" {
		if text, err = yaml.JSONToYAML(raw); err != nil {
			return holdfast.Wrap("format answer", err)
		}
	}
	_, err = c.out.Write(text)
	return holdfast.Wrap("write answer", err)
}

// grid is a table: columns as wide as their content, two spaces between.
type grid struct {
	head []string
	rows [][]string
}

func (g *grid) add(cells ...string) { g.rows = append(g.rows, cells) }

func (g *grid) write(w io.Writer, indent string) {
	widths := make([]int, len(g.head))
	for _, row := range append([][]string{g.head}, g.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], visible(cell))
		}
	}
	for _, row := range append([][]string{g.head}, g.rows...) {
		var b strings.Builder
		b.WriteString(indent)
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-visible(cell)+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// visible is how many columns a cell takes, colour codes excluded.
func visible(s string) int {
	n := 0
	for s != "" {
		if rest, ok := strings.CutPrefix(s, "\x1b["); ok {
			_, s, _ = strings.Cut(rest, "m")
			continue
		}
		_, size := utf8.DecodeRuneInString(s)
		s = s[size:]
		n++
	}
	return n
}

// terminal says whether a writer is one, and how wide it is.
func terminal(w io.Writer) (width int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	return width, true
}

// colour marks a health or state when a person looks at a terminal.
func (c *cli) colour(state string) string {
	if _, tty := terminal(c.out); !tty || os.Getenv("NO_COLOR") != "" {
		return state
	}
	code := ""
	switch state {
	case api.Healthy, "in-sync", "online", "ready", "alive", "up":
		code = "32"
	case api.Degraded, api.Warning, "stale", "rebuilding", "new", "draining", "cordoned", "creating", "deleting":
		code = "33"
	case api.Waiting, api.Unavailable, api.Critical, "dead", "full", "failed", "unreachable", "down":
		code = "31"
	default:
		return state
	}
	return "\x1b[" + code + "m" + state + "\x1b[0m"
}

// dash is a cell's content, "-" when there is none.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// since is how long ago something was, as people say it.
func since(t, now time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero() || t.Unix() == 0:
		return "-"
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// field writes one aligned "name  value" line of an inspect view.
func field(w io.Writer, name, format string, a ...any) {
	fmt.Fprintf(w, "  %-13s %s\n", name, fmt.Sprintf(format, a...))
}

func asError(err error) (*holdfast.Error, bool) {
	var he *holdfast.Error
	ok := errors.As(err, &he)
	return he, ok
}
