package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

const (
	ioTimeoutHelp    = "I/O that cannot go on fails after so long, such as 30s; 0: it waits without limit"
	slowReplicasHelp = "what becomes of a replica that is much slower than the others: off, report or drop (default: as the node is configured)"
)

func (c *cli) volumeSet() *cobra.Command {
	var timeout time.Duration
	var slow string
	var replicas int32
	var limits *limitFlags
	cmd := &cobra.Command{
		Use: "set VOLUME", Short: "Change a volume's number of replicas, its limits of I/O, and what it does when something is slow or away",
		Long: "Changes a volume's policies, also while it is in use; what is not named stays.\n" +
			"More replicas are built in the background; of fewer, the surplus goes.\n" +
			"With an I/O timeout, requests that cannot go on for so long fail with an I/O error, and\n" +
			"later ones at once until I/O can go on again. The device stays. A write that failed so\n" +
			"may be there afterwards or not, as after any disk error.\n" +
			"With --iops and --bandwidth, requests beyond the limits wait; 0 takes a limit away.",
		Example: "  holdfast volume set db-1 --replicas 3\n  holdfast volume set db-1 --io-timeout 30s\n  holdfast volume set db-1 --io-timeout 0 --slow-replicas drop\n  holdfast volume set db-1 --iops 500 --bandwidth 50MiB --burst 10s",
		Args:    exactly("the VOLUME"), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := &holdfastv1.UpdateVolumePolicyRequest{Volume: args[0]}
			if cmd.Flags().Changed("io-timeout") {
				ms := timeout.Milliseconds()
				q.IoTimeoutMillis = &ms
			}
			if cmd.Flags().Changed("slow-replicas") {
				q.SlowReplicas = &slow
			}
			if cmd.Flags().Changed("replicas") {
				q.Replicas = &replicas
			}
			var err error
			if q.Iops, q.Bandwidth, q.BurstMillis, err = limits.read(); err != nil {
				return err
			}
			if q.IoTimeoutMillis == nil && q.SlowReplicas == nil && q.Replicas == nil && q.Iops == nil && q.Bandwidth == nil && q.BurstMillis == nil {
				return usage(cmd, errors.New("nothing is to be changed: add --replicas, --io-timeout, --slow-replicas, --iops, --bandwidth or --burst"))
			}
			cl, err := c.volumes()
			if err != nil {
				return err
			}
			v, err := cl.UpdateVolumePolicy(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(v, func(w io.Writer) {
				fmt.Fprintf(w, "Volume %s: %s, %s, %s\n", v.GetName(), plural(int(v.GetSpec().GetReplicas()), "replica"), policyText(v.GetSpec()), limitsText(v.GetSpec().GetLimits()))
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "io-timeout", 0, ioTimeoutHelp)
	cmd.Flags().Int32VarP(&replicas, "replicas", "r", 0, "copies, each on its own node")
	cmd.Flags().StringVar(&slow, "slow-replicas", "", slowReplicasHelp)
	limits = addLimitFlags(cmd)
	return cmd
}

// policyText says what a volume does when something is slow or away.
func policyText(s *holdfastv1.VolumeSpec) string {
	text := "I/O waits without limit"
	if ms := s.GetIoTimeoutMillis(); ms > 0 {
		text = fmt.Sprintf("I/O that cannot go on fails after %v", time.Duration(ms)*time.Millisecond)
	}
	if p := s.GetSlowReplicas(); p != "" {
		return text + ", slow replicas: " + p
	}
	return text + ", slow replicas: as the node is configured"
}

// waitsView lists what waits.
func waitsView(w io.Writer, ws []*holdfastv1.Wait) {
	if len(ws) == 0 {
		return
	}
	fmt.Fprintln(w, "\nWaiting")
	for _, x := range ws {
		subject := x.GetWhat()
		if x.GetVolume() != "" {
			subject += " of volume " + x.GetVolume()
		}
		if x.GetNode() != "" {
			subject += " on node " + x.GetNode()
		}
		long := ""
		if x.GetMillis() > 0 {
			long = ", for " + (time.Duration(x.GetMillis()) * time.Millisecond).Round(100*time.Millisecond).String()
		}
		fmt.Fprintf(w, "  %s: waits for %s%s\n", subject, x.GetWaitingFor(), long)
	}
}

// shownEvents is how many events inspect shows to people; JSON has all.
const shownEvents = 8

func eventsView(w io.Writer, es []*holdfastv1.VolumeEvent) {
	if len(es) == 0 {
		return
	}
	fmt.Fprintln(w, "\nEvents")
	for _, e := range es[max(0, len(es)-shownEvents):] {
		fmt.Fprintf(w, "  %s  %s  %s\n", e.GetAt().AsTime().Local().Format(time.DateTime), e.GetNode(), e.GetWhat())
	}
}

// scrubsView lists the scrubs that are under way, or found something.
func scrubsView(w io.Writer, ss []*holdfastv1.VolumeScrub) {
	if len(ss) == 0 {
		return
	}
	fmt.Fprintln(w, "\nScrubs")
	for _, s := range ss {
		done := ""
		if x := s.GetScrub(); x.GetEnded() == nil && x.GetTotalBytes() > 0 {
			done = fmt.Sprintf(", %s of %s done", api.Bytes(x.GetDoneBytes()), api.Bytes(x.GetTotalBytes()))
		}
		fmt.Fprintf(w, "  volume %s: %s%s\n", s.GetVolume(), scrubLine(s.GetScrub(), time.Now()), done)
	}
}
