package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) volumeCommand() *cobra.Command {
	g := group("volume", "Create, show, grow, attach and delete volumes",
		c.volumeCreate(), c.volumeClone(), c.volumeList(), c.volumeInspect(), c.volumeExpand(), c.volumeAttach(), c.volumeDetach(), c.volumeDelete(), c.volumeLabel(), c.volumeUpdate(), c.volumeScrub())
	g.Aliases = []string{"volumes", "vol"}
	return g
}

// volumeArgs completes the names of volumes.
func (c *cli) volumeArgs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cl, err := c.volumes()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ls, err := cl.ListVolumes(context.WithoutCancel(cmd.Context()), &holdfastv1.ListVolumesRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, v := range ls.GetVolumes() {
		names = append(names, v.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) volumeCreate() *cobra.Command {
	q := &holdfastv1.CreateVolumeRequest{}
	var size string
	var timeout time.Duration
	var limits *limitFlags
	cmd := &cobra.Command{
		Use: "create NAME --size SIZE", Short: "Create a volume, empty or from a snapshot",
		Example: "  holdfast volume create db-test --from-snapshot before-upgrade\n  holdfast volume create db-1 --size 20GiB\n  holdfast volume create logs --size 500G --replicas 2 --fs ext4 --zone a,b --label app=logs",
		Args:    exactly("the volume's NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if size == "" && q.GetSourceSnapshot() == "" {
				return usage(cmd, fmt.Errorf("the size is missing: add --size, such as --size 10GiB"))
			}
			var err error
			if q.Limits, err = limits.proto(); err != nil {
				return err
			}
			q.Name, q.IoTimeoutMillis = args[0], timeout.Milliseconds()
			if q.GetSourceSnapshot() != "" {
				asSource(cmd, q)
			}
			return c.makeVolume(cmd.Context(), q, size)
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.SourceSnapshot, "from-snapshot", "", "what is in it: the snapshot's name or id; size and filesystem are then its own unless given")
	f.StringVarP(&size, "size", "s", "", "size, such as 10GiB")
	f.Int32VarP(&q.Replicas, "replicas", "r", 3, "copies, each on its own node")
	f.Int32Var(&q.MinInSync, "min-in-sync", 1, "writes wait while fewer replicas are in sync")
	f.StringVar(&q.FsType, "fs", "", "filesystem it will be mounted with: xfs or ext4 (default xfs, or ext4 below 300 MiB)")
	f.StringVar(&q.Locality, "locality", "preferred", "whether a task must run where a replica is: required, preferred or none")
	f.Int32Var(&q.LogicalBlock, "logical-block", 4096, "block size the device shows: 4096 or 512")
	f.StringSliceVar(&q.Racks, "rack", nil, "replicas only in these racks")
	f.StringSliceVar(&q.Zones, "zone", nil, "replicas only in these zones")
	f.StringToStringVar(&q.Labels, "label", nil, "labels, key=value")
	f.DurationVar(&timeout, "io-timeout", 0, ioTimeoutHelp)
	f.StringVar(&q.SlowReplicas, "slow-replicas", "", slowReplicasHelp)
	limits = addLimitFlags(cmd)
	return cmd
}

// asSource leaves to a clone's source what is not given.
func asSource(cmd *cobra.Command, q *holdfastv1.CreateVolumeRequest) {
	for name, unset := range map[string]func(){
		"replicas": func() { q.Replicas = 0 }, "min-in-sync": func() { q.MinInSync = 0 },
		"locality": func() { q.Locality = "" }, "logical-block": func() { q.LogicalBlock = 0 },
	} {
		if !cmd.Flags().Changed(name) {
			unset()
		}
	}
}

// makeVolume sends the request; an empty size leaves that to the source.
func (c *cli) makeVolume(ctx context.Context, q *holdfastv1.CreateVolumeRequest, size string) error {
	var err error
	if size != "" {
		if q.SizeBytes, err = api.ParseBytes(size); err != nil {
			return err
		}
	}
	cl, err := c.volumes()
	if err != nil {
		return err
	}
	v, err := cl.CreateVolume(ctx, q)
	if err != nil {
		return c.explain(err)
	}
	return c.show(v, func(w io.Writer) {
		fmt.Fprintf(w, "Volume %s (%s, %s on %s) is ready, id %s\n", v.GetName(), api.Bytes(v.GetSpec().GetSizeBytes()), plural(len(v.GetReplicas()), "replica"), replicaNodes(v), v.GetId())
	})
}

func (c *cli) volumeClone() *cobra.Command {
	q := &holdfastv1.CreateVolumeRequest{}
	var size string
	cmd := &cobra.Command{
		Use: "clone VOLUME NAME", Short: "Create a volume with the content of another one, as it is now",
		Long: "Creates the volume NAME with the content of VOLUME, which may be in use: as after a\n" +
			"power loss at that moment. It takes next to no time and space, and both are\n" +
			"independent of each other. For a clone of a snapshot: holdfast volume create --from-snapshot",
		Example: "  holdfast volume clone db-1 db-test\n  holdfast volume clone db-1 db-large --size 40GiB",
		Args:    exactly("the VOLUME", "the clone's NAME"), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			q.SourceVolume, q.Name = args[0], args[1]
			return c.makeVolume(cmd.Context(), q, size)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&size, "size", "s", "", "size, at least the volume's own (default the same)")
	f.Int32VarP(&q.Replicas, "replicas", "r", 0, "copies (default as many as VOLUME)")
	f.StringToStringVar(&q.Labels, "label", nil, "labels, key=value")
	return cmd
}

func replicaNodes(v *holdfastv1.Volume) string {
	var ns []string
	for _, r := range v.GetReplicas() {
		ns = append(ns, r.GetNode())
	}
	return strings.Join(ns, ", ")
}

func (c *cli) volumeList() *cobra.Command {
	q := &holdfastv1.ListVolumesRequest{}
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List volumes", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.volumes()
			if err != nil {
				return err
			}
			ls, err := cl.ListVolumes(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(ls, func(w io.Writer) { c.volumeTable(w, ls.GetVolumes()) })
		},
	}
	cmd.Flags().StringToStringVar(&q.Labels, "label", nil, "only volumes with these labels, key=value")
	cmd.Flags().StringVar(&q.Node, "node", "", "only volumes with a replica on, or attached to, this node")
	return cmd
}

func (c *cli) volumeExpand() *cobra.Command {
	return &cobra.Command{
		Use: "expand VOLUME SIZE", Short: "Make a volume larger, also while it is in use",
		Long: "Makes a volume larger. SIZE is the new size, or with a leading + what to add.\n" +
			"The device grows at once where the volume is attached; its filesystem is grown by\n" +
			"the orchestrator through CSI, or by hand with xfs_growfs or resize2fs.",
		Example:           "  holdfast volume expand db-1 40GiB\n  holdfast volume expand db-1 +10GiB",
		Args:              exactly("the VOLUME", "the new SIZE"),
		ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.volumes()
			if err != nil {
				return err
			}
			more, relative := strings.CutPrefix(args[1], "+")
			size, err := api.ParseBytes(more)
			if err != nil {
				return err
			}
			if relative {
				v, err := cl.GetVolume(cmd.Context(), &holdfastv1.GetVolumeRequest{Volume: args[0]})
				if err != nil {
					return c.explain(err)
				}
				size += v.GetSpec().GetSizeBytes()
			}
			v, err := cl.ExpandVolume(cmd.Context(), &holdfastv1.ExpandVolumeRequest{Volume: args[0], SizeBytes: size})
			if err != nil {
				return c.explain(err)
			}
			return c.show(v, func(w io.Writer) {
				if v.GetSizeBytes() < v.GetSpec().GetSizeBytes() {
					fmt.Fprintf(w, "Volume %s grows from %s to %s\n", v.GetName(), api.Bytes(v.GetSizeBytes()), api.Bytes(v.GetSpec().GetSizeBytes()))
					return
				}
				fmt.Fprintf(w, "Volume %s has %s now\n", v.GetName(), api.Bytes(v.GetSpec().GetSizeBytes()))
			})
		},
	}
}

func (c *cli) volumeAttach() *cobra.Command {
	q := &holdfastv1.AttachVolumeRequest{}
	cmd := &cobra.Command{
		Use: "attach VOLUME", Short: "Make a volume a block device on a node",
		Args: exactly("the VOLUME"), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.volumes()
			if err != nil {
				return err
			}
			q.Volume = args[0]
			a, err := cl.AttachVolume(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(a, func(w io.Writer) {
				fmt.Fprintf(w, "Volume %s is attached to node %s as %s\n", a.GetVolume().GetName(), a.GetNode(), dash(a.GetDevicePath()))
			})
		},
	}
	cmd.Flags().StringVar(&q.Node, "node", "", "node to attach to (default: the one whose daemon answers)")
	cmd.Flags().BoolVar(&q.Force, "force", false, "take it from a node that is alive; its device fails there")
	return cmd
}

func (c *cli) volumeDetach() *cobra.Command {
	q := &holdfastv1.DetachVolumeRequest{}
	cmd := &cobra.Command{
		Use: "detach VOLUME", Short: "Remove a volume's block device",
		Args: exactly("the VOLUME"), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.volumes()
			if err != nil {
				return err
			}
			q.Volume = args[0]
			v, err := cl.DetachVolume(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(v, func(w io.Writer) { fmt.Fprintf(w, "Volume %s is detached\n", v.GetName()) })
		},
	}
	cmd.Flags().BoolVar(&q.Force, "force", false, "also while it is mounted: what uses it gets I/O errors")
	return cmd
}

func (c *cli) volumeDelete() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete VOLUME", Aliases: []string{"rm"}, Short: "Delete a volume and its data, for good",
		Args: exactly("the VOLUME"), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.volumes()
			if err != nil {
				return err
			}
			if !yes {
				if err := c.confirm(fmt.Sprintf("Delete volume %s and all its data?", args[0])); err != nil {
					return err
				}
			}
			if _, err := cl.DeleteVolume(cmd.Context(), &holdfastv1.DeleteVolumeRequest{Volume: args[0]}); err != nil {
				return c.explain(err)
			}
			return c.show(&holdfastv1.DeleteVolumeResponse{}, func(w io.Writer) { fmt.Fprintf(w, "Volume %s is deleted\n", args[0]) })
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// confirm asks on a terminal; elsewhere --yes is needed.
func (c *cli) confirm(question string) error {
	f, ok := c.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return holdfast.E("confirm", holdfast.Invalid, "nobody can be asked here; add --yes to go ahead")
	}
	fmt.Fprintf(c.err, "%s [y/N] ", question)
	var answer string
	_, _ = fmt.Fscanln(c.in, &answer)
	if a := strings.ToLower(answer); a == "y" || a == "yes" {
		return nil
	}
	return holdfast.E("confirm", holdfast.Invalid, "not confirmed; nothing was done")
}

func (c *cli) volumeLabel() *cobra.Command {
	return &cobra.Command{
		Use: "label VOLUME KEY=VALUE... KEY-...", Short: "Set labels, or remove them with KEY-",
		Example:           "  holdfast volume label db-1 app=shop tier=gold old-",
		ValidArgsFunction: c.volumeArgs,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usage(cmd, fmt.Errorf("a volume and at least one label are needed: %s", cmd.UseLine()))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			q := &holdfastv1.UpdateVolumeLabelsRequest{Volume: args[0], Set: map[string]string{}}
			for _, a := range args[1:] {
				k, v, isSet := strings.Cut(a, "=")
				switch {
				case isSet:
					q.Set[k] = v
				case strings.HasSuffix(a, "-"):
					q.Remove = append(q.Remove, strings.TrimSuffix(a, "-"))
				default:
					return usage(cmd, fmt.Errorf("%q is no label; write key=value, or key- to remove it", a))
				}
			}
			cl, err := c.volumes()
			if err != nil {
				return err
			}
			v, err := cl.UpdateVolumeLabels(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(v, func(w io.Writer) { fmt.Fprintf(w, "Volume %s has the labels %s\n", v.GetName(), dash(labels(v))) })
		},
	}
}
