package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) snapshotCommand() *cobra.Command {
	g := group("snapshot", "Take, show, compare, restore and delete snapshots of volumes",
		c.snapshotCreate(), c.snapshotList(), c.snapshotInspect(), c.snapshotDiff(), c.snapshotRestore(), c.snapshotDelete())
	g.Aliases = []string{"snapshots", "snap"}
	return g
}

// snapshotArgs completes the names of snapshots.
func (c *cli) snapshotArgs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "diff" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cl, err := c.snapshots()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ls, err := cl.ListSnapshots(context.WithoutCancel(cmd.Context()), &holdfastv1.ListSnapshotsRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, x := range ls.GetSnapshots() {
		names = append(names, x.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) snapshotCreate() *cobra.Command {
	q := &holdfastv1.CreateSnapshotRequest{}
	cmd := &cobra.Command{
		Use: "create VOLUME NAME", Short: "Take a snapshot of a volume, in use or not",
		Long: "Takes a snapshot: the volume's content at one moment, the same on every replica.\n" +
			"What an application has not flushed then is not in it, as after a power loss;\n" +
			"with --freeze it is, if the volume is mounted on the node that it is attached to.\n" +
			"NAME is unique among all snapshots.",
		Example: "  holdfast snapshot create db-1 before-upgrade",
		Args:    exactly("the VOLUME", "the snapshot's NAME"), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.snapshots()
			if err != nil {
				return err
			}
			q.Volume, q.Name = args[0], args[1]
			x, err := cl.CreateSnapshot(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(x, func(w io.Writer) {
				fmt.Fprintf(w, "Snapshot %s of volume %s (%s) is ready, %s, id %s\n", x.GetName(), x.GetVolume(), api.Bytes(x.GetSizeBytes()), consistency(x), x.GetId())
			})
		},
	}
	cmd.Flags().StringToStringVar(&q.Labels, "label", nil, "labels, key=value")
	cmd.Flags().BoolVar(&q.Freeze, "freeze", false, "freeze the filesystem meanwhile, where the volume is mounted")
	return cmd
}

// consistency is what a snapshot's content is like.
func consistency(x *holdfastv1.Snapshot) string {
	if x.GetFrozen() {
		return "filesystem-consistent"
	}
	return "crash-consistent"
}

func (c *cli) snapshotList() *cobra.Command {
	q := &holdfastv1.ListSnapshotsRequest{}
	cmd := &cobra.Command{
		Use: "list [VOLUME]", Aliases: []string{"ls"}, Short: "List snapshots, by volume and age",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.snapshots()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				q.Volume = args[0]
			}
			ls, err := cl.ListSnapshots(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(ls, func(w io.Writer) { c.snapshotTable(w, ls.GetSnapshots()) })
		},
	}
	cmd.Flags().StringToStringVar(&q.Labels, "label", nil, "only snapshots with these labels, key=value")
	return cmd
}

func (c *cli) snapshotTable(w io.Writer, xs []*holdfastv1.Snapshot) {
	if len(xs) == 0 {
		fmt.Fprintln(w, "No snapshots. Take one with: holdfast snapshot create VOLUME NAME")
		return
	}
	c.snapshotGrid(xs).write(w, "")
}

func (c *cli) snapshotGrid(xs []*holdfastv1.Snapshot) *grid {
	g := &grid{head: []string{"NAME", "VOLUME", "SIZE", "STATE", "AGE", "ID"}}
	now := time.Now()
	for _, x := range xs {
		g.add(x.GetName(), x.GetVolume(), api.Bytes(x.GetSizeBytes()), c.colour(x.GetState()), since(x.GetCreated().AsTime(), now), x.GetId())
	}
	return g
}

func (c *cli) snapshotInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect SNAPSHOT", Aliases: []string{"show"}, Short: "Show a snapshot with what it takes on the nodes",
		Args: exactly("the SNAPSHOT"), ValidArgsFunction: c.snapshotArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.snapshots()
			if err != nil {
				return err
			}
			x, err := cl.GetSnapshot(cmd.Context(), &holdfastv1.GetSnapshotRequest{Snapshot: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(x, func(w io.Writer) { c.snapshotView(cmd.Context(), w, x) })
		},
	}
}

// snapshotView is a snapshot for people.
func (c *cli) snapshotView(ctx context.Context, w io.Writer, x *holdfastv1.Snapshot) {
	fmt.Fprintf(w, "Snapshot %s\n", x.GetName())
	field(w, "id", "%s", x.GetId())
	field(w, "volume", "%s (%s)", x.GetVolume(), x.GetVolumeId())
	field(w, "state", "%s", c.colour(x.GetState()))
	if x.GetSizeBytes() > 0 {
		field(w, "content", "%s", consistency(x))
	}
	field(w, "taken", "%s (%s ago)", x.GetCreated().AsTime().Local().Format(time.DateTime), since(x.GetCreated().AsTime(), time.Now()))
	if x.GetSizeBytes() > 0 {
		c.snapshotSizes(ctx, w, x)
	}
	if x.GetGroup() != "" {
		field(w, "group", "%s", x.GetGroup())
	}
	if len(x.GetLabels()) > 0 {
		var ls []string
		for _, k := range slices.Sorted(maps.Keys(x.GetLabels())) {
			ls = append(ls, k+"="+x.GetLabels()[k])
		}
		field(w, "labels", "%s", strings.Join(ls, " "))
	}
}

func (c *cli) snapshotRestore() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "restore SNAPSHOT", Short: "Make a volume's content that of a snapshot again",
		Long: "Makes the volume's content that of the snapshot again. What was written since is\n" +
			"lost, but for what other snapshots hold: take one before. The volume must not be\n" +
			"attached. To look at a snapshot, make a volume of it instead:\n" +
			"holdfast volume create NAME --from-snapshot SNAPSHOT",
		Example: "  holdfast snapshot restore before-upgrade",
		Args:    exactly("the SNAPSHOT"), ValidArgsFunction: c.snapshotArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.snapshots()
			if err != nil {
				return err
			}
			x, err := cl.GetSnapshot(cmd.Context(), &holdfastv1.GetSnapshotRequest{Snapshot: args[0]})
			if err != nil {
				return c.explain(err)
			}
			if !yes {
				if err := c.confirm(fmt.Sprintf("Make volume %s what it was in snapshot %s, and lose what was written since?", x.GetVolume(), x.GetName())); err != nil {
					return err
				}
			}
			v, err := cl.RestoreSnapshot(cmd.Context(), &holdfastv1.RestoreSnapshotRequest{Snapshot: x.GetId()})
			if err != nil {
				return c.explain(err)
			}
			return c.show(v, func(w io.Writer) {
				fmt.Fprintf(w, "Volume %s is restored to snapshot %s\n", v.GetName(), x.GetName())
			})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (c *cli) snapshotDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete SNAPSHOT", Aliases: []string{"rm"}, Short: "Delete a snapshot; clones made of it stay",
		Args: exactly("the SNAPSHOT"), ValidArgsFunction: c.snapshotArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.snapshots()
			if err != nil {
				return err
			}
			answer, err := cl.DeleteSnapshot(cmd.Context(), &holdfastv1.DeleteSnapshotRequest{Snapshot: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(answer, func(w io.Writer) { fmt.Fprintf(w, "Snapshot %s is deleted\n", args[0]) })
		},
	}
}
