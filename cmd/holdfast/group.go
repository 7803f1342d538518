package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) groupCommand() *cobra.Command {
	s := group("snapshot", "Take, show and delete snapshots of several volumes at one point in time",
		c.groupCreate(), c.groupList(), c.groupInspect(), c.groupDelete())
	s.Aliases = []string{"snapshots", "snap"}
	g := group("group", "Work with several volumes together", s)
	g.Aliases = []string{"groups"}
	return g
}

// groupArgs completes the names of group snapshots.
func (c *cli) groupArgs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cl, err := c.groups()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ls, err := cl.ListGroupSnapshots(context.WithoutCancel(cmd.Context()), &holdfastv1.ListGroupSnapshotsRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, g := range ls.GetGroups() {
		names = append(names, g.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) groupCreate() *cobra.Command {
	q := &holdfastv1.CreateGroupSnapshotRequest{}
	cmd := &cobra.Command{
		Use: "create NAME VOLUME...", Short: "Take snapshots of several volumes at one point in time, in use or not",
		Long: "Takes snapshots of several volumes at one point in time, wherever they are attached:\n" +
			"what an application wrote to one volume after it had written to another is in the\n" +
			"one's snapshot only if the other is in the other's. The writes of all wait until the\n" +
			"last is taken, some milliseconds; if one cannot be held in time, all go on, and\n" +
			"nothing is left. Each snapshot is called NAME/VOLUME. With --freeze filesystems are\n" +
			"clean in it, where volumes are mounted on the nodes that they are attached to.",
		Example: "  holdfast group snapshot create nightly db-data db-log\n" +
			"  holdfast group snapshot create before-upgrade db-data db-log --freeze",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usage(cmd, errors.New("a name and at least one volume are needed: "+cmd.UseLine()))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.groups()
			if err != nil {
				return err
			}
			q.Name, q.Volumes = args[0], args[1:]
			g, err := cl.CreateGroupSnapshot(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(g, func(w io.Writer) {
				fmt.Fprintf(w, "Group snapshot %s of %s is ready, id %s\n", g.GetName(), plural(len(g.GetSnapshots()), "volume"), g.GetId())
			})
		},
	}
	cmd.Flags().StringToStringVar(&q.Labels, "label", nil, "labels, key=value")
	cmd.Flags().BoolVar(&q.Freeze, "freeze", false, "freeze the filesystems meanwhile, where the volumes are mounted")
	return cmd
}

func (c *cli) groupList() *cobra.Command {
	q := &holdfastv1.ListGroupSnapshotsRequest{}
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List group snapshots", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.groups()
			if err != nil {
				return err
			}
			ls, err := cl.ListGroupSnapshots(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(ls, func(w io.Writer) { c.groupTable(w, ls.GetGroups()) })
		},
	}
	cmd.Flags().StringToStringVar(&q.Labels, "label", nil, "only those with these labels, key=value")
	return cmd
}

func (c *cli) groupTable(w io.Writer, gs []*holdfastv1.GroupSnapshot) {
	if len(gs) == 0 {
		fmt.Fprintln(w, "No group snapshots. Take one with: holdfast group snapshot create NAME VOLUME...")
		return
	}
	g := grid{head: []string{"NAME", "VOLUMES", "STATE", "AGE", "ID"}}
	now := time.Now()
	for _, x := range gs {
		var vs []string
		for _, m := range x.GetSnapshots() {
			vs = append(vs, m.GetVolume())
		}
		g.add(x.GetName(), strings.Join(vs, ", "), c.colour(x.GetState()), since(x.GetCreated().AsTime(), now), x.GetId())
	}
	g.write(w, "")
}

func (c *cli) groupInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect GROUP", Aliases: []string{"show"}, Short: "Show a group snapshot with its snapshots",
		Args: exactly("the group snapshot's NAME"), ValidArgsFunction: c.groupArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.groups()
			if err != nil {
				return err
			}
			g, err := cl.GetGroupSnapshot(cmd.Context(), &holdfastv1.GetGroupSnapshotRequest{Group: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(g, func(w io.Writer) { c.groupView(w, g) })
		},
	}
}

// groupView is a group snapshot for people.
func (c *cli) groupView(w io.Writer, g *holdfastv1.GroupSnapshot) {
	fmt.Fprintf(w, "Group snapshot %s\n", g.GetName())
	field(w, "id", "%s", g.GetId())
	field(w, "state", "%s", c.colour(g.GetState()))
	field(w, "taken", "%s (%s ago)", g.GetCreated().AsTime().Local().Format(time.DateTime), since(g.GetCreated().AsTime(), time.Now()))
	if ms := g.GetHeldMillis(); ms > 0 {
		field(w, "held", "for %v at most: the volumes' writes waited", time.Duration(ms)*time.Millisecond)
	}
	if ls := pairs(g.GetLabels()); ls != "" {
		field(w, "labels", "%s", ls)
	}
	fmt.Fprintln(w, "\nSnapshots")
	t := grid{head: []string{"NAME", "VOLUME", "SIZE", "STATE", "ID"}}
	for _, x := range g.GetSnapshots() {
		t.add(x.GetName(), x.GetVolume(), api.Bytes(x.GetSizeBytes()), c.colour(x.GetState()), x.GetId())
	}
	t.write(w, "  ")
}

func (c *cli) groupDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete GROUP", Aliases: []string{"rm"}, Short: "Delete a group snapshot with its snapshots; clones made of them stay",
		Args: exactly("the group snapshot's NAME"), ValidArgsFunction: c.groupArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.groups()
			if err != nil {
				return err
			}
			answer, err := cl.DeleteGroupSnapshot(cmd.Context(), &holdfastv1.DeleteGroupSnapshotRequest{Group: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(answer, func(w io.Writer) { fmt.Fprintf(w, "Group snapshot %s is deleted\n", args[0]) })
		},
	}
}
