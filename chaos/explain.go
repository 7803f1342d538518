package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

// explain shows and keeps what a failure is to be understood from.
func (r *run) explain(ctx context.Context, round int, err error) {
	r.j.note("FAILED in round %d of seed %d: %v", round, r.o.seed, err)
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, round %d: %v\n\n", r.o.seed, round, err)
	for _, k := range r.keepers {
		fmt.Fprintln(&b, k.state())
	}
	for _, args := range [][]string{{"status"}, {"node", "list"}, {"pool", "list"}} {
		r.show(ctx, &b, args...)
	}
	for _, k := range r.keepers {
		r.show(ctx, &b, "volume", "inspect", k.claim.Name)
	}
	ms, _ := netcluster.MountsBelow(r.o.dir)
	for _, m := range ms {
		fmt.Fprintln(&b, "mount", m)
	}
	for _, pid := range append(r.net.Processes(ctx), os.Getpid()) {
		for _, w := range waiting(pid) {
			fmt.Fprintln(&b, w)
		}
	}
	fmt.Fprintf(&b, "\nThe same again: %s\n", r.o.repeat)
	if err := os.WriteFile(filepath.Join(r.o.logs, "failure.txt"), []byte(b.String()), 0o644); err != nil {
		r.j.note("%v", err)
	}
	fmt.Printf("\nThe time line of round %d of seed %d:\n%s\n\nThe last warnings and errors of the daemons:\n", round, r.o.seed, strings.Join(r.j.sinceRound(), "\n"))
	for _, m := range r.f.machines {
		for _, line := range compact(netcluster.LastLines(filepath.Join(r.o.logs, m.node()+".log"), 5000), shownLines) {
			fmt.Printf("  %s: %s\n", m.node(), line)
		}
	}
	r.f.dump()
}

// shownLines is how many different lines of each daemon a failure shows.
const shownLines = 15

// compact leaves out of the lines of a log what etcd says to each fault, and shows
// those that say the same again and again once, at their last time; at most n.
func compact(lines []string, n int) []string {
	noise := regexp.MustCompile(`msg="?etcd: `)
	when, differs := regexp.MustCompile(`^time=\S+ `), regexp.MustCompile(`[0-9a-f]*[0-9][0-9a-f.]*(ms|µs|m|s)?`)
	count := map[string]int{}
	said := func(line string) string { return differs.ReplaceAllString(when.ReplaceAllString(line, ""), "#") }
	for _, line := range lines {
		count[said(line)]++
	}
	var out []string
	for _, line := range slices.Backward(lines) {
		c := count[said(line)]
		if c == 0 || noise.MatchString(line) || len(out) == n {
			continue
		}
		delete(count, said(line))
		if line = fmt.Sprintf("%.300s", line); c > 1 {
			line += fmt.Sprintf(" (%d times)", c)
		}
		out = append(out, line)
	}
	slices.Reverse(out)
	return out
}

func (r *run) show(ctx context.Context, b *strings.Builder, args ...string) {
	text, err := r.f.cli(ctx, args...)
	if err != nil {
		text = err.Error()
	}
	fmt.Fprintf(b, "\n$ holdfast %s\n%s\n", strings.Join(args, " "), text)
}
