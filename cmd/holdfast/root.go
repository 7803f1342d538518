package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// endpointVar names the API to talk to.
const endpointVar = "HOLDFAST_ENDPOINT"

// cli is what the commands share.
type cli struct {
	endpoint string
	timeout  time.Duration
	format   string
	in       io.Reader
	out, err io.Writer
	conn     *grpc.ClientConn
}

// run executes one command line and gives the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	c := &cli{in: in, out: out, err: errw}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	if c.conn != nil {
		_ = c.conn.Close()
	}
	if err != nil {
		report(errw, err)
	}
	return exitCode(err)
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Replicated block volumes for containers",
		Long: "Holdfast keeps block volumes for containers on several nodes at once.\n\n" +
			"Every node runs a daemon (holdfast node). The other commands talk to one daemon,\n" +
			"by default the one on this machine; --endpoint or " + endpointVar + " name another.",
		SilenceUsage:      true,
		SilenceErrors:     true,
		Args:              noCommandArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, err) })
	pf := root.PersistentFlags()
	pf.StringVar(&c.endpoint, "endpoint", "", "API to talk to, host:port or unix:///path (default $"+endpointVar+", else this machine's daemon)")
	pf.DurationVar(&c.timeout, "timeout", time.Minute, "how long to wait for an answer")
	pf.StringVarP(&c.format, "output", "o", "table", "table, json or yaml")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return c.checkFlags() }
	root.AddCommand(c.statusCommand(), c.volumeCommand(), c.snapshotCommand(), c.groupCommand(), c.scheduleCommand(), c.nodeCommand(), c.poolCommand(), c.mesosCommand(), c.demoCommand(), c.versionCommand())
	return root
}

func (c *cli) checkFlags() error {
	switch c.format {
	case "table", "json", "yaml":
		return nil
	}
	return holdfast.E("read flags", holdfast.Invalid, fmt.Sprintf("the output %q is unknown; choose table, json or yaml", c.format))
}

// usage is an error about the command line that points at the help.
func usage(cmd *cobra.Command, err error) error {
	return holdfast.E("", holdfast.Invalid, fmt.Sprintf("%v\nsee: %s --help", err, cmd.CommandPath()))
}

// exactly wants n arguments, named for the error.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage(cmd, fmt.Errorf("%s is missing: %s", names[len(args)], cmd.UseLine()))
		case len(args) > len(names):
			return usage(cmd, fmt.Errorf("%q is one argument too many: %s", args[len(names)], cmd.UseLine()))
		}
		return nil
	}
}

// group is a command that only has subcommands.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Args: noCommandArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	g.AddCommand(subs...)
	return g
}

// noCommandArgs says of the first argument that it is no command.
func noCommandArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	return nil
}

func unknownCommand(cmd *cobra.Command, name string) error {
	msg := fmt.Sprintf("there is no command %q", cmd.CommandPath()+" "+name)
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(name); len(s) > 0 {
		msg += "; did you mean " + strings.Join(s, " or ") + "?"
	}
	return usage(cmd, fmt.Errorf("%s", msg))
}

// connect prepares the connection to the API.
func (c *cli) connect() (*grpc.ClientConn, error) {
	if c.conn != nil {
		return c.conn, nil
	}
	conn, err := rpc.Config{CallTimeout: c.timeout}.Dial(c.target())
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return conn, nil
}

// target is the API's address: flag, environment, then this machine's socket if
// it is there, else the port.
func (c *cli) target() string {
	if c.endpoint != "" {
		return c.endpoint
	}
	if e := os.Getenv(endpointVar); e != "" {
		return e
	}
	if _, err := os.Stat(strings.TrimPrefix(api.DefaultUnix, "unix://")); err == nil {
		return api.DefaultUnix
	}
	return api.DefaultTCP
}

func (c *cli) volumes() (holdfastv1.VolumeServiceClient, error) {
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewVolumeServiceClient(conn), nil
}

func (c *cli) snapshots() (holdfastv1.SnapshotServiceClient, error) {
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewSnapshotServiceClient(conn), nil
}

func (c *cli) groups() (holdfastv1.GroupSnapshotServiceClient, error) {
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewGroupSnapshotServiceClient(conn), nil
}

func (c *cli) cluster() (holdfastv1.ClusterServiceClient, error) {
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewClusterServiceClient(conn), nil
}

// explain adds to an error that nobody answered what to do about it. A daemon
// that answered with kind unavailable has said so itself, under an operation.
func (c *cli) explain(err error) error {
	if he, ok := asError(err); ok && he.Kind == holdfast.Unavailable && he.Op == "" {
		return holdfast.E("no answer from the daemon at "+c.target(), holdfast.Unavailable,
			he.Error()+"\nstart it with: holdfast node --config FILE\nor name another with --endpoint or "+endpointVar)
	}
	return err
}
