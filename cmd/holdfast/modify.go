package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) volumeUpdate() *cobra.Command {
	var f updateFlags
	cmd := &cobra.Command{
		Use: "update VOLUME", Short: "Change a volume's number of replicas, its limits of I/O, its locality, and what it does when something is slow or away",
		Long: "Changes a volume, also while it is in use: all that is named, or nothing; the rest stays.\n" +
			"More replicas are built in the background; of fewer, the surplus goes.\n" +
			"With an I/O timeout, requests that cannot go on for so long fail with an I/O error, and\n" +
			"later ones at once until I/O can go on again. The device stays. A write that failed so\n" +
			"may be there afterwards or not, as after any disk error.\n" +
			"With --iops and --bandwidth, requests beyond the limits wait; 0 takes a limit away.",
		Example: "  holdfast volume update db-1 --replicas 3\n  holdfast volume update db-1 --io-timeout 30s\n  holdfast volume update db-1 --io-timeout 0 --slow-replicas drop\n  holdfast volume update db-1 --iops 500 --bandwidth 50MiB --burst 10s",
		Args:    exactly("the VOLUME"), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := f.request(cmd, args[0])
			if err != nil {
				return err
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
	f.add(cmd)
	return cmd
}

// updateFlags say what is to be changed about a volume.
type updateFlags struct {
	timeout         time.Duration
	slow, locality  string
	replicas, least int32
	limits          *limitFlags
}

func (f *updateFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.DurationVar(&f.timeout, "io-timeout", 0, ioTimeoutHelp)
	fs.Int32VarP(&f.replicas, "replicas", "r", 0, "copies, each on its own node")
	fs.Int32Var(&f.least, "min-in-sync", 0, "writes wait while fewer replicas are in sync")
	fs.StringVar(&f.slow, "slow-replicas", "", slowReplicasHelp)
	fs.StringVar(&f.locality, "locality", "", "whether a task must run where a replica is: required, preferred or none; what an orchestrator was told at creation it does not learn anew")
	f.limits = addLimitFlags(cmd)
}

// request has what was given on the command line.
func (f *updateFlags) request(cmd *cobra.Command, volume string) (*holdfastv1.UpdateVolumePolicyRequest, error) {
	q := &holdfastv1.UpdateVolumePolicyRequest{Volume: volume}
	for name, take := range map[string]func(){
		"io-timeout":    func() { ms := f.timeout.Milliseconds(); q.IoTimeoutMillis = &ms },
		"slow-replicas": func() { q.SlowReplicas = &f.slow },
		"replicas":      func() { q.Replicas = &f.replicas },
		"min-in-sync":   func() { q.MinInSync = &f.least },
		"locality":      func() { q.Locality = &f.locality },
	} {
		if cmd.Flags().Changed(name) {
			take()
		}
	}
	var err error
	if q.Iops, q.Bandwidth, q.BurstMillis, err = f.limits.read(); err != nil {
		return nil, err
	}
	if proto.Equal(q, &holdfastv1.UpdateVolumePolicyRequest{Volume: volume}) {
		return nil, usage(cmd, errors.New("nothing is to be changed: add --replicas, --min-in-sync, --locality, --io-timeout, --slow-replicas, --iops, --bandwidth or --burst"))
	}
	return q, nil
}
