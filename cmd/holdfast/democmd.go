package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/demo"
)

func (c *cli) demoCommand() *cobra.Command {
	o := demo.DefaultOptions()
	var clean bool
	cmd := &cobra.Command{
		Use: "demo", Short: "Show it at work: a whole cluster on this machine with a database that outlives its node",
		Long: "Runs three storage nodes and one without storage on this machine, each in its own\n" +
			"network namespace, and a PostgreSQL on a replicated volume; makes a replica\n" +
			"unreachable, cuts the power of the database's node, and checks that every\n" +
			"acknowledged row is there on another node; drops a table, and finds it again in a\n" +
			"clone of a snapshot. Takes about two minutes, needs root, and removes everything at\n" +
			"its end. Exit code 0 means that everything held.",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if clean {
				return demo.Clean(cmd.Context(), o)
			}
			self, err := os.Executable()
			if err != nil {
				return holdfast.Wrap("find this program", err)
			}
			o.Binary, o.Out = self, c.out
			_, o.TTY = terminal(c.out)
			if err := demo.Run(cmd.Context(), o); err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.out, "\nEverything held.")
			return err
		},
	}
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "leave the cluster running at the end, and say how to talk to it")
	cmd.Flags().BoolVar(&clean, "clean", false, "only remove what a run with --keep, or one that was killed, left")
	cmd.Flags().StringVar(&o.Dir, "dir", o.Dir, "folder for the run: sparse files that take up to some gigabytes; removed at the end")
	return cmd
}
