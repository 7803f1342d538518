package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/daemon"
)

// sample is one measurement. Times are in microseconds, CPU in seconds per
// million operations.
type sample struct {
	IOPS       float64 `json:"iops"`
	MBps       float64 `json:"mbps"`
	P50        float64 `json:"p50us"`
	P99        float64 `json:"p99us"`
	P999       float64 `json:"p999us"`
	DaemonsCPU float64 `json:"daemonsCPU"`
	AllCPU     float64 `json:"allCPU"` // daemons, fio and the kernel's threads
	MachineCPU float64 `json:"machineCPU"`
	ops        float64
	fioCPU     time.Duration
}

// series are all measurements of one load on one target.
type series struct {
	Target  string   `json:"target"`
	Load    string   `json:"load"`
	Samples []sample `json:"samples"`
	Median  sample   `json:"median"`
	// ToRaw is the median of the ratios to the raw file's rate in the same
	// repetition; 0 without one.
	ToRaw float64 `json:"toRaw,omitempty"`
	what  string
}

// results is what a run found; written as JSON.
type results struct {
	When    time.Time       `json:"when"`
	Kernel  string          `json:"kernel"`
	CPUs    int             `json:"cpus"`
	Runtime string          `json:"runtime"`          // of each measurement
	Failed  string          `json:"failed,omitempty"` // why there is no more
	Series  []*series       `json:"series"`
	Added   []step          `json:"added,omitempty"` // to a write at depth 1
	Slow    []*series       `json:"throttled,omitempty"`
	Ratios  []slowRatio     `json:"throttledRatios,omitempty"`
	Repair  []*besideRepair `json:"repair,omitempty"`
	Resync  *resync         `json:"resync,omitempty"`
	Survive []*survived     `json:"survive,omitempty"`
	Keeper  *usage          `json:"keeper,omitempty"`
	Control control         `json:"control"`
	Without []string        `json:"without,omitempty"` // targets that this machine lacks something for

	Snapshots *snapshotFigures `json:"snapshots,omitempty"`
	Scale     *scaleFigures    `json:"scale,omitempty"`
	Records   *recordFigures   `json:"records,omitempty"`
}

// control is about the control plane, in milliseconds.
type control struct {
	Create []float64 `json:"createMs,omitempty"`
	Attach []float64 `json:"attachMs,omitempty"`
	Lease  float64   `json:"leaseMs,omitempty"`
	// FromKill is from killing the node to the device on another one; TakeOver
	// is the last part of it, once the lease had run out.
	FromKill float64 `json:"fromKillMs,omitempty"`
	TakeOver float64 `json:"takeOverMs,omitempty"`
}

func leaseTTL() time.Duration { return time.Duration(daemon.DefaultConfig().Times.Lease) }

func (r *results) begin(o options) {
	r.When, r.CPUs, r.Runtime = time.Now().UTC(), runtime.NumCPU(), o.runtime.String()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
}

func (r *results) find(target, load string) *series { return find(r.Series, target, load) }

func find(all []*series, target, load string) *series {
	i := slices.IndexFunc(all, func(s *series) bool { return s.Target == target && s.Load == load })
	if i < 0 {
		return nil
	}
	return all[i]
}

func (r *results) add(t target, l load, s sample) { r.Series = r.addTo(r.Series, t, l, s) }

// addTo adds a sample to one of all the series, and gives them all.
func (r *results) addTo(all []*series, t target, l load, s sample) []*series {
	found := find(all, t.name, l.name)
	if found == nil {
		found = &series{Target: t.name, Load: l.name, what: l.what}
		all = append(all, found)
	}
	found.Samples = append(found.Samples, s)
	found.Median = sample{
		IOPS: found.median(func(s sample) float64 { return s.IOPS }), MBps: found.median(func(s sample) float64 { return s.MBps }),
		P50: found.median(func(s sample) float64 { return s.P50 }), P99: found.median(func(s sample) float64 { return s.P99 }),
		P999:       found.median(func(s sample) float64 { return s.P999 }),
		DaemonsCPU: found.median(func(s sample) float64 { return s.DaemonsCPU }), AllCPU: found.median(func(s sample) float64 { return s.AllCPU }),
		MachineCPU: found.median(func(s sample) float64 { return s.MachineCPU }),
	}
	raw := find(all, "raw", l.name)
	if raw == nil || len(raw.Samples) != len(found.Samples) {
		return all
	}
	var ratios []float64
	for i, s := range found.Samples {
		ratios = append(ratios, s.IOPS/max(raw.Samples[i].IOPS, 1))
	}
	found.ToRaw = median(ratios)
	return all
}

func (s *series) median(of func(sample) float64) float64 {
	var vs []float64
	for _, x := range s.Samples {
		vs = append(vs, of(x))
	}
	return median(vs)
}

func median(vs []float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	vs = slices.Sorted(slices.Values(vs))
	if n := len(vs); n%2 == 0 {
		return (vs[n/2-1] + vs[n/2]) / 2
	}
	return vs[len(vs)/2]
}

func spread(vs []float64) string {
	return fmt.Sprintf("%.0f [%.0f..%.0f]", median(vs), slices.Min(vs), slices.Max(vs))
}

// print writes the tables for people.
func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "\nLinux %s, %d CPUs, runs of %s; medians and ranges\n", r.Kernel, r.CPUs, r.Runtime)
	for _, l := range loads() {
		head := false
		for _, s := range r.Series {
			if s.Load != l.name {
				continue
			}
			if !head {
				head = true
				fmt.Fprintf(w, "\n%s\n%-5s %24s %8s %8s %8s %8s %6s %8s %8s %8s\n", l.what, "", "IOPS", "MB/s", "p50 µs", "p99", "p99.9", "to raw", "daemons*", "all*", "machine*")
			}
			var iops []float64
			for _, x := range s.Samples {
				iops = append(iops, x.IOPS)
			}
			m := s.Median
			fmt.Fprintf(w, "%-5s %24s %8.0f %8.0f %8.0f %8.0f %5.0f%% %8.1f %8.1f %8.1f\n", s.Target, spread(iops), m.MBps, m.P50, m.P99, m.P999, 100*s.ToRaw, m.DaemonsCPU, m.AllCPU, m.MachineCPU)
		}
	}
	if r.Records != nil {
		r.Records.print(w)
	}
	if r.Scale != nil {
		r.Scale.print(w)
	}
	if len(r.Series) > 0 {
		fmt.Fprintln(w, "\n* CPU seconds per million operations: of the daemons (or their like), with fio and the kernel's threads, and of everything that ran on the machine")
	}
	if len(r.Added) > 0 {
		fmt.Fprintln(w, "\na write of 4 KiB at depth 1, by medians of p50:")
	}
	for _, s := range r.Added {
		fmt.Fprintf(w, "%-46s %7.0f µs\n", s.What, s.Micros)
	}
	for _, s := range r.Ratios {
		s.print(w)
	}
	for _, s := range r.Repair {
		s.print(w)
	}
	if r.Resync != nil {
		r.Resync.print(w)
	}
	for _, s := range r.Survive {
		s.print(w)
	}
	if k := r.Keeper; k != nil {
		fmt.Fprintf(w, "the keeper: %.1f MiB resident, of which %.1f are not the program's file; %d threads, %d files\n", k.Resident, k.Anonymous, k.Threads, k.Files)
	}
	if r.Snapshots != nil {
		r.Snapshots.print(w)
	}
	if r.Failed != "" {
		fmt.Fprintf(w, "\nnot all was measured: %s\n", r.Failed)
	}
	if c := r.Control; len(c.Create) > 0 {
		fmt.Fprintf(w, "\ncreate a volume with 3 replicas: %s ms\nattach it: %s ms\n", spread(c.Create), spread(c.Attach))
		fmt.Fprintf(w, "its node is killed: attached elsewhere after %.0f ms, of which %.0f ms once the lease (%.0f ms) had run out\n", c.FromKill, c.TakeOver, c.Lease)
	}
}

// write stores everything as JSON.
func (r *results) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	return holdfast.Wrap("write "+strings.TrimSpace(path), err)
}
