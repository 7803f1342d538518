package main

import (
	"fmt"
	"io"
	"maps"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) statusCommand() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show how the cluster is, what is wrong and what to do",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.cluster()
			if err != nil {
				return err
			}
			st, err := cl.GetStatus(cmd.Context(), &holdfastv1.GetStatusRequest{})
			if err != nil {
				return c.explain(err)
			}
			if err := c.show(st, func(w io.Writer) { c.statusTable(w, st) }); err != nil {
				return err
			}
			if check && st.GetHealth() != api.Healthy {
				return errUnhealthy
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, fmt.Sprintf("exit with code %d unless all is healthy", exitUnhealthy))
	return cmd
}

func (c *cli) statusTable(w io.Writer, st *holdfastv1.ClusterStatus) {
	fmt.Fprintf(w, "Cluster %s: %s\n", shortID(st.GetClusterId()), c.colour(st.GetHealth()))
	field(w, "nodes", "%s", counted(st.GetNodes(), "alive"))
	field(w, "pools", "%s", counted(st.GetPools(), "online"))
	field(w, "volumes", "%s, %d attached", counted(st.GetVolumes(), "healthy"), st.GetAttached())
	field(w, "space", "%s free of %s; volumes are %s in all, each counted once", api.Bytes(st.GetFreeBytes()), api.Bytes(st.GetTotalBytes()), api.Bytes(st.GetProvisionedBytes()))
	field(w, "leader", "%s", dash(st.GetLeader()))
	field(w, "answered by", "%s (%s)", st.GetAnsweredBy(), st.GetRelease())
	if len(st.GetRepairs()) > 0 {
		fmt.Fprintln(w, "\nRepairs")
		rs := st.GetRepairs()
		for _, r := range rs[:min(len(rs), shownRepairs)] {
			fmt.Fprintf(w, "  volume %s on node %s: %s\n", r.GetVolume(), r.GetNode(), repairText(r.GetCopiedBytes(), r.GetLeftBytes(), r.GetTotalBytes()))
		}
		if more := len(rs) - shownRepairs; more > 0 {
			fmt.Fprintf(w, "  and %d more; all of them: holdfast status -o yaml\n", more)
		}
	}
	scrubsView(w, st.GetScrubs())
	waitsView(w, st.GetWaits())
	c.problems(w, st.GetProblems())
}

// When a node with a thousand volumes is away, a thousand problems are the same one:
// of more than alikeShown alike, examplesShown are. Of the repairs, shownRepairs.
const (
	alikeShown    = 5
	examplesShown = 3
	shownRepairs  = 20
)

// problems lists what is wrong, each with what to do.
func (c *cli) problems(w io.Writer, ps []*holdfastv1.Problem) {
	if len(ps) == 0 {
		return
	}
	type kind struct{ severity, what string }
	left := map[kind]int{}
	for _, p := range ps {
		left[kind{p.GetSeverity(), p.GetWhat()}]++
	}
	count := maps.Clone(left)
	fmt.Fprintln(w, "\nProblems")
	for _, p := range ps {
		k := kind{p.GetSeverity(), p.GetWhat()}
		left[k]--
		if n := count[k]; n > alikeShown && n-left[k] > examplesShown {
			continue
		}
		fmt.Fprintf(w, "  %s: %s: %s\n      do: %s\n", c.colour(p.GetSeverity()), p.GetSubject(), p.GetWhat(), p.GetRemedy())
		if n := count[k]; n > alikeShown && n-left[k] == examplesShown {
			fmt.Fprintf(w, "      the same of %d more; all of them: holdfast status -o yaml\n", n-examplesShown)
		}
	}
}

// plural is n with the word for it.
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func counted(n *holdfastv1.Count, what string) string {
	switch {
	case n.GetTotal() == 0:
		return "none"
	case n.GetWell() == 0:
		return fmt.Sprintf("%d, none %s", n.GetTotal(), what)
	case n.GetTotal() == n.GetWell():
		return fmt.Sprintf("%d, all %s", n.GetTotal(), what)
	}
	return fmt.Sprintf("%d, %d of them %s", n.GetTotal(), n.GetWell(), what)
}

// repairText says how far a repair is.
func repairText(copied, left, total int64) string {
	switch {
	case left > 0:
		return fmt.Sprintf("%s copied, %s left", api.Bytes(copied), api.Bytes(left))
	case total > 0 || copied > 0:
		return fmt.Sprintf("done, %s copied", api.Bytes(copied))
	}
	return ""
}

func shortID(id string) string { return id[:min(len(id), 8)] }
