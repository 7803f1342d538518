package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/docs"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// nodeCommand is the daemon, with the commands about nodes below it.
func (c *cli) nodeCommand() *cobra.Command {
	cmd := c.daemonCommand()
	cmd.AddCommand(c.nodeConfig(), c.nodeList(), c.nodeInspect(), c.nodeDrain(), c.nodeUndrain(), c.nodeForget(), c.upgradeCommand())
	return cmd
}

func (c *cli) nodeConfig() *cobra.Command {
	return &cobra.Command{
		Use: "config", Short: "Print an example of the daemon's configuration, with every setting explained",
		Example: "  holdfast node config > /etc/holdfast/node.yaml",
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(c.out, docs.NodeYAML)
			return holdfast.Wrap("print the example", err)
		},
	}
}

// nodeArgs completes the names of nodes.
func (c *cli) nodeArgs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cl, err := c.cluster()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ls, err := cl.ListNodes(cmd.Context(), &holdfastv1.ListNodesRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, n := range ls.GetNodes() {
		names = append(names, n.GetId())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) nodeList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List nodes", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.cluster()
			if err != nil {
				return err
			}
			ls, err := cl.ListNodes(cmd.Context(), &holdfastv1.ListNodesRequest{})
			if err != nil {
				return c.explain(err)
			}
			return c.show(ls, func(w io.Writer) { c.nodeTable(w, ls.GetNodes()) })
		},
	}
}

func (c *cli) nodeTable(w io.Writer, ns []*holdfastv1.Node) {
	g := grid{head: []string{"NODE", "STATE", "DOMAIN", "POOLS", "FREE", "SIZE", "REPLICAS", "ATTACHED", "UP", "RELEASE"}}
	now := time.Now()
	for _, n := range ns {
		var free, total int64
		for _, p := range n.GetPools() {
			free, total = free+p.GetFreeBytes(), total+p.GetTotalBytes()
		}
		space, size := "-", "-"
		if len(n.GetPools()) > 0 {
			space, size = api.Bytes(free), api.Bytes(total)
		}
		up := "-"
		if n.GetAlive() {
			up = since(n.GetStarted().AsTime(), now)
		}
		g.add(n.GetId(), c.colour(n.GetState()), dash(domain(n)), fmt.Sprint(len(n.GetPools())), space, size, fmt.Sprint(n.GetReplicas()), fmt.Sprint(len(n.GetAttached())), up, n.GetRelease())
	}
	g.write(w, "")
}

// domain shows rack, zone and region as far as they are set.
func domain(n *holdfastv1.Node) string {
	var out []string
	for _, s := range []string{n.GetDomain().GetRegion(), n.GetDomain().GetZone(), n.GetDomain().GetRack()} {
		if s != "" {
			out = append(out, s)
		}
	}
	return strings.Join(out, "/")
}

func (c *cli) nodeInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NODE", Aliases: []string{"show"}, Short: "Show a node and what is on it",
		Args: exactly("the NODE"), ValidArgsFunction: c.nodeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.cluster()
			if err != nil {
				return err
			}
			n, err := cl.GetNode(cmd.Context(), &holdfastv1.GetNodeRequest{Node: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(n, func(w io.Writer) { c.nodeView(w, n) })
		},
	}
}

func (c *cli) nodeView(w io.Writer, n *holdfastv1.Node) {
	fmt.Fprintf(w, "Node %s: %s\n", n.GetId(), c.colour(n.GetState()))
	d := n.GetDomain()
	field(w, "host", "%s", dash(d.GetHost()))
	field(w, "domain", "rack %s, zone %s, region %s", dash(d.GetRack()), dash(d.GetZone()), dash(d.GetRegion()))
	field(w, "data", "%s", n.GetDataAddress())
	field(w, "services", "%s", n.GetApiAddress())
	field(w, "started", "%s (%s ago)", n.GetStarted().AsTime().Local().Format(time.DateTime), since(n.GetStarted().AsTime(), time.Now()))
	if n.GetGoneSince() != nil {
		field(w, "dead since", "%s (%s ago)", n.GetGoneSince().AsTime().Local().Format(time.DateTime), since(n.GetGoneSince().AsTime(), time.Now()))
	}
	field(w, "release", "%s", dash(n.GetRelease()))
	field(w, "attached", "%s", dash(strings.Join(n.GetAttached(), ", ")))
	field(w, "replicas of", "%s", dash(strings.Join(n.GetReplicaVolumes(), ", ")))
	if len(n.GetPools()) > 0 {
		fmt.Fprintln(w, "\nPools")
		g := grid{head: []string{"POOL", "DEVICE", "STATE", "FREE", "SIZE", "REPLICAS", "MESSAGE"}}
		for _, p := range n.GetPools() {
			g.add(shortID(p.GetId()), p.GetDevice(), c.colour(p.GetState()), api.Bytes(p.GetFreeBytes()), api.Bytes(p.GetTotalBytes()), fmt.Sprint(p.GetReplicas()), p.GetMessage())
		}
		g.write(w, "  ")
	}
}

func (c *cli) nodeDrain() *cobra.Command {
	return &cobra.Command{
		Use: "drain NODE", Short: "Put no new replicas on a node and move those it has away",
		Args: exactly("the NODE"), ValidArgsFunction: c.nodeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.cluster()
			if err != nil {
				return err
			}
			n, err := cl.DrainNode(cmd.Context(), &holdfastv1.DrainNodeRequest{Node: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(n, func(w io.Writer) {
				fmt.Fprintf(w, "Node %s is draining: %s to move away; %s attached there until the tasks stop\nfollow it with: holdfast node inspect %s\n",
					n.GetId(), plural(int(n.GetReplicas()), "replica"), plural(len(n.GetAttached()), "volume"), n.GetId())
			})
		},
	}
}

func (c *cli) nodeUndrain() *cobra.Command {
	return &cobra.Command{
		Use: "undrain NODE", Short: "Use a drained node again",
		Args: exactly("the NODE"), ValidArgsFunction: c.nodeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.cluster()
			if err != nil {
				return err
			}
			n, err := cl.UndrainNode(cmd.Context(), &holdfastv1.UndrainNodeRequest{Node: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(n, func(w io.Writer) { fmt.Fprintf(w, "Node %s is %s\n", n.GetId(), c.colour(n.GetState())) })
		},
	}
}

func (c *cli) nodeForget() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "forget NODE", Short: "Remove a dead node that will not come back; its replicas count as lost",
		Args: exactly("the NODE"), ValidArgsFunction: c.nodeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.cluster()
			if err != nil {
				return err
			}
			if !yes {
				if err := c.confirm(fmt.Sprintf("Forget node %s and count its replicas as lost?", args[0])); err != nil {
					return err
				}
			}
			f, err := cl.ForgetNode(cmd.Context(), &holdfastv1.ForgetNodeRequest{Node: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(f, func(w io.Writer) { forgotten(w, args[0], f) })
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func forgotten(w io.Writer, node string, f *holdfastv1.ForgetNodeResponse) {
	fmt.Fprintf(w, "Node %s is forgotten: %s to be made again elsewhere\n", node, plural(int(f.GetRemoved()+f.GetLeaving()), "replica"))
	if len(f.GetOnly()) > 0 {
		fmt.Fprintf(w, "The only good copy of these volumes is there; bring the node back to have them: %s\n", strings.Join(f.GetOnly(), ", "))
	}
}
