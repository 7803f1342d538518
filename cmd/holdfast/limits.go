package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// limitFlags are the flags for limits of a volume's I/O.
type limitFlags struct {
	cmd       *cobra.Command
	iops      int64
	bandwidth string
	burst     time.Duration
}

func addLimitFlags(cmd *cobra.Command) *limitFlags {
	l := &limitFlags{cmd: cmd}
	f := cmd.Flags()
	f.Int64Var(&l.iops, "iops", 0, "reads, writes and trims a second at most; 0: no limit")
	f.StringVar(&l.bandwidth, "bandwidth", "0", "bytes a second at most, read and written together, such as 100MiB; 0: no limit")
	f.DurationVar(&l.burst, "burst", 0, "how much unused time is kept: after a rest, so much of the limits may be used at once (default 1s)")
	return l
}

// read gives what the flags say, with nil for those that were not given.
func (l *limitFlags) read() (iops, bandwidth, burstMillis *int64, err error) {
	if l.cmd.Flags().Changed("iops") {
		iops = &l.iops
	}
	if l.cmd.Flags().Changed("bandwidth") {
		n, err := api.ParseBytes(strings.TrimSuffix(l.bandwidth, "/s"))
		if err != nil {
			return nil, nil, nil, err
		}
		bandwidth = &n
	}
	if l.cmd.Flags().Changed("burst") {
		ms := l.burst.Milliseconds()
		burstMillis = &ms
	}
	return iops, bandwidth, burstMillis, nil
}

// proto is what the flags say for a new volume; nil for no limits.
func (l *limitFlags) proto() (*holdfastv1.Limits, error) {
	iops, bandwidth, burst, err := l.read()
	if err != nil || iops == nil && bandwidth == nil && burst == nil {
		return nil, err
	}
	or0 := func(n *int64) int64 {
		if n == nil {
			return 0
		}
		return *n
	}
	return &holdfastv1.Limits{Iops: or0(iops), Bandwidth: or0(bandwidth), BurstMillis: or0(burst)}, nil
}

// limitsText says what a volume's I/O is limited to.
func limitsText(l *holdfastv1.Limits) string {
	var of []string
	if n := l.GetIops(); n > 0 {
		of = append(of, fmt.Sprintf("%d operations/s", n))
	}
	if n := l.GetBandwidth(); n > 0 {
		of = append(of, api.Bytes(n)+"/s")
	}
	if len(of) == 0 {
		return "no limit of I/O"
	}
	burst := holdfast.Limits{BurstMillis: l.GetBurstMillis()}.Burst()
	return fmt.Sprintf("I/O limited to %s, bursts of %v", strings.Join(of, " and "), burst)
}
