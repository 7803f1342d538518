package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) poolCommand() *cobra.Command {
	g := group("pool", "Show, check and format pools", c.poolList(), c.poolCheck(), c.poolFormat())
	g.Aliases = []string{"pools"}
	return g
}

func (c *cli) poolList() *cobra.Command {
	q := &holdfastv1.ListPoolsRequest{}
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the pools of all nodes", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.cluster()
			if err != nil {
				return err
			}
			ls, err := cl.ListPools(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(ls, func(w io.Writer) { c.poolTable(w, ls.GetPools()) })
		},
	}
	cmd.Flags().StringVar(&q.Node, "node", "", "only the pools of this node")
	return cmd
}

func (c *cli) poolTable(w io.Writer, ps []*holdfastv1.Pool) {
	if len(ps) == 0 {
		fmt.Fprintln(w, "No pools. List a disk under pools in a node's configuration, or see: holdfast pool format --help")
		return
	}
	g := grid{head: []string{"POOL", "NODE", "DEVICE", "STATE", "FREE", "SIZE", "REPLICAS", "MESSAGE"}}
	for _, p := range ps {
		g.add(shortID(p.GetId()), p.GetNode(), p.GetDevice(), c.colour(p.GetState()), api.Bytes(p.GetFreeBytes()), api.Bytes(p.GetTotalBytes()), fmt.Sprint(p.GetReplicas()), p.GetMessage())
	}
	g.write(w, "")
}

func (c *cli) poolCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check POOL", Short: "Verify everything a pool holds; the pool stays in use",
		Long: "Verifies everything a pool holds. POOL is its id or an unambiguous beginning of it.\nThe exit code is 0 when the pool is sound.",
		Args: exactly("the POOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.cluster()
			if err != nil {
				return err
			}
			s, err := cl.CheckPool(cmd.Context(), &holdfastv1.CheckPoolRequest{PoolId: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.followCheck(args[0], s)
		},
	}
}

// checkStream is the answers of a pool check.
type checkStream interface {
	Recv() (*holdfastv1.CheckPoolResponse, error)
}

func (c *cli) followCheck(pool string, s checkStream) error {
	b := newBar(c.err, "check of pool "+shortID(pool))
	result := &holdfastv1.CheckPoolResponse{}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			b.end()
			return c.explain(err)
		}
		result.Problems = append(result.Problems, m.GetProblems()...)
		result.Done, result.Total, result.Finished = m.GetDone(), m.GetTotal(), m.GetFinished()
		b.set(m.GetDone(), m.GetTotal(), fmt.Sprintf("%d problems", len(result.GetProblems())))
	}
	b.end()
	if !result.GetFinished() {
		return holdfast.E("check pool "+pool, holdfast.Unavailable, "the check ended before it was complete; see the daemon's log and run it again")
	}
	if err := c.show(result, func(w io.Writer) { checkTable(w, pool, result) }); err != nil {
		return err
	}
	if n := len(result.GetProblems()); n > 0 {
		return holdfast.E("check pool "+pool, holdfast.Corrupt, fmt.Sprintf("%d problems found; drain the node to have its replicas rebuilt elsewhere", n))
	}
	return nil
}

func checkTable(w io.Writer, pool string, r *holdfastv1.CheckPoolResponse) {
	if len(r.GetProblems()) == 0 {
		fmt.Fprintf(w, "Pool %s is sound\n", pool)
		return
	}
	for _, p := range r.GetProblems() {
		fmt.Fprintln(w, " ", p)
	}
}
