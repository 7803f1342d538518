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

// cpu is CPU time used so far.
type cpu struct {
	daemons time.Duration // user and system time of the daemons
	// machine is everything that was not idle: fio, the kernel's threads for
	// loop devices, and whatever else runs on the machine.
	machine time.Duration
}

func readCPU(procs []*process) (cpu, error) {
	var c cpu
	for _, p := range procs {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			return c, holdfast.Wrap("read CPU time of a daemon", err)
		}
		// The second field is the name in parentheses, which may have spaces.
		_, rest, _ := strings.Cut(string(raw), ") ")
		f := strings.Fields(rest)
		if len(f) < 13 {
			return c, holdfast.E("read CPU time of a daemon", holdfast.Other, "/proc shows too little")
		}
		c.daemons += ticks(f[11]) + ticks(f[12])
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

func ticks(s string) time.Duration {
	n, _ := strconv.ParseInt(s, 10, 64)
	return time.Duration(n) * tick
}
