package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
	if err := os.WriteFile(filepath.Join(r.o.logs, "failure.txt"), []byte(b.String()), 0o644); err != nil {
		r.j.note("%v", err)
	}
	noise := regexp.MustCompile(`msg="?etcd: `) // etcd has its own words for each fault
	fmt.Printf("\nThe time line of round %d of seed %d:\n%s\n\nThe last warnings and errors of the daemons:\n", round, r.o.seed, strings.Join(r.j.sinceRound(), "\n"))
	for _, m := range r.f.machines {
		for _, line := range netcluster.LastLines(filepath.Join(r.o.logs, m.node()+".log"), 400) {
			if !noise.MatchString(line) {
				fmt.Printf("  %s: %.300s\n", m.node(), line)
			}
		}
	}
	r.f.dump()
	fmt.Printf("\nFAILED: seed %d, round %d: %v\nLogs, with what each daemon was doing: %s; what the cluster said: %s\n",
		r.o.seed, round, err, r.o.logs, filepath.Join(r.o.logs, "failure.txt"))
}

func (r *run) show(ctx context.Context, b *strings.Builder, args ...string) {
	text, err := r.f.cli(ctx, args...)
	if err != nil {
		text = err.Error()
	}
	fmt.Fprintf(b, "\n$ holdfast %s\n%s\n", strings.Join(args, " "), text)
}
