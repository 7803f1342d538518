package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/engine"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) poolFormat() *cobra.Command {
	var cluster, node string
	cmd := &cobra.Command{
		Use: "format DEVICE", Short: "Make a disk of this machine a pool, if it is provably empty",
		Long: "Makes a disk, or an image file, of this machine a pool of its node. Only a disk that\n" +
			"holds nothing is taken: with a partition table, a filesystem or anything else on it,\n" +
			"it is refused; wipe it yourself first (wipefs -a) if that is what you want.\n" +
			"A pool of the same cluster is left as it is. Then list the disk under pools in the\n" +
			"node's configuration and restart its daemon.",
		Args: exactly("the DEVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cluster == "" || node == "" {
				cl, err := c.cluster()
				if err != nil {
					return err
				}
				st, err := cl.GetStatus(cmd.Context(), &holdfastv1.GetStatusRequest{})
				if err != nil {
					return c.explain(err)
				}
				cluster, node = orElse(cluster, st.GetClusterId()), orElse(node, st.GetAnsweredBy())
			}
			root, err := os.MkdirTemp("", "holdfast-format-")
			if err != nil {
				return holdfast.Wrap("make mount point", err)
			}
			defer func() { _ = os.Remove(root) }()
			info, err := engine.Format(cmd.Context(), engine.FormatOptions{Device: args[0], Cluster: holdfast.ClusterID(cluster), Node: holdfast.NodeID(node), MountRoot: root})
			if err != nil {
				return err
			}
			return c.showFormatted(info)
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "id of the cluster (default: asked of this machine's daemon)")
	cmd.Flags().StringVar(&node, "node", "", "id of this node (default: asked of this machine's daemon)")
	return cmd
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// showFormatted shows a pool that is not in the cluster's records yet.
func (c *cli) showFormatted(info engine.PoolInfo) error {
	if c.format == "table" {
		_, err := fmt.Fprintf(c.out, "%s (%s) is pool %s of node %s now\nList it under pools in the node's configuration and restart its daemon\n", info.Device, api.Bytes(info.SizeBytes), info.Pool, info.Node)
		return err
	}
	text, err := json.MarshalIndent(map[string]any{"id": info.Pool, "node": info.Node, "device": info.Device, "totalBytes": info.SizeBytes}, "", "  ")
	if err == nil && c.format == "yaml" {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return holdfast.Wrap("format answer", err)
	}
	_, err = fmt.Fprintln(c.out, string(text))
	return err
}
