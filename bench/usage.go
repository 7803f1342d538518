package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// usage is what a daemon takes: memory in MiB, CPU in percent of one core.
type usage struct {
	Resident  float64 `json:"residentMiB"`
	Anonymous float64 `json:"anonymousMiB"`
	Threads   int     `json:"threads"`
	Files     int     `json:"files"`
	CPU       float64 `json:"cpuPercent"`
}

// watch looks at all daemons for some time.
func (b *bench) watch(ctx context.Context, d time.Duration) ([]usage, error) {
	return b.watchSome(ctx, b.cluster.pids(), d)
}

// watchSome looks at these processes, which are the first daemons.
func (b *bench) watchSome(ctx context.Context, pids []int, d time.Duration) ([]usage, error) {
	before := make([]stat, len(pids))
	for i, pid := range pids {
		var err error
		if before[i], err = readStat(pid); err != nil {
			return nil, holdfast.Wrap("look at daemon "+nodeName(i), err)
		}
	}
	began := time.Now()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	all := make([]usage, len(pids))
	for i, pid := range pids {
		after, err := readStat(pid)
		if err == nil {
			all[i], err = readUsage(pid)
		}
		if err != nil {
			return nil, holdfast.Wrap("look at daemon "+nodeName(i), err)
		}
		all[i].CPU = 100 * float64(after.used-before[i].used) / float64(time.Since(began))
	}
	return all, nil
}

// readUsage reads /proc/PID/status, see proc(5).
func readUsage(pid int) (usage, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return usage{}, err
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return usage{}, err
	}
	u := usage{Files: len(files)}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseFloat(f[1], 64) // others are no numbers
		switch f[0] {
		case "VmRSS:":
			u.Resident = n / 1024
		case "RssAnon:":
			u.Anonymous = n / 1024
		case "Threads:":
			u.Threads = int(n)
		}
	}
	return u, nil
}
