package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// tick is the unit of CPU time in /proc: USER_HZ, 100 on all of Linux.
const tick = 10 * time.Millisecond

// cpu is CPU time used so far, user and system.
type cpu struct {
	daemons time.Duration
	// kernel is that of the kernel's threads: those of loop devices, and those
	// that take over what is too much for interrupts.
	kernel map[int]time.Duration // by process id: they come and go
	// machine is everything that was not idle, whoever caused it.
	machine time.Duration
}

// readCPU reads the counters; pids are the daemons.
func readCPU(pids []int) (cpu, error) {
	c := cpu{kernel: map[int]time.Duration{}}
	for _, pid := range pids {
		s, err := readStat(pid)
		if err != nil {
			return c, holdfast.Wrap("read CPU time of a daemon", err)
		}
		c.daemons += s.used
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return c, holdfast.Wrap("read CPU time", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil && s.parent == kthreadd { // else it has just ended
			c.kernel[pid] = s.used
		}
	}
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c, holdfast.Wrap("read CPU time", err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	// cpu user nice system idle iowait irq softirq: see proc(5).
	for i, f := range strings.Fields(line) {
		if i >= 1 && i <= 7 && i != 4 && i != 5 {
			c.machine += ticks(f)
		}
	}
	return c, nil
}

// kernelSince is what the kernel's threads have used since before; what those
// used last that have ended is not known.
func (c cpu) kernelSince(before cpu) (sum time.Duration) {
	for pid, used := range c.kernel {
		sum += max(used-before.kernel[pid], 0)
	}
	return sum
}

// kthreadd is the process id of the parent of all threads of the kernel.
const kthreadd = 2

// stat is what is used of /proc/PID/stat.
type stat struct {
	parent int
	used   time.Duration
}

func readStat(pid int) (stat, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The second field is the name in parentheses, which may have spaces.
	i := strings.LastIndex(string(raw), ") ")
	f := strings.Fields(string(raw)[i+1:])
	if i < 0 || len(f) < 13 {
		return stat{}, holdfast.E("read /proc/PID/stat", holdfast.Other, "it shows too little")
	}
	parent, err := strconv.Atoi(f[1])
	return stat{parent: parent, used: ticks(f[11]) + ticks(f[12])}, err
}

func ticks(s string) time.Duration {
	n, _ := strconv.ParseInt(s, 10, 64)
	return time.Duration(n) * tick
}
