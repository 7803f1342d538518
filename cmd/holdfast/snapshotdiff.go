package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// ranges reads a listing to its end, as one message.
func (c *cli) ranges(ctx context.Context, q *holdfastv1.ListSnapshotRangesRequest) (*holdfastv1.SnapshotRanges, error) {
	cl, err := c.snapshots()
	if err != nil {
		return nil, err
	}
	stream, err := cl.ListSnapshotRanges(ctx, q)
	if err != nil {
		return nil, err
	}
	all := &holdfastv1.SnapshotRanges{}
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		}
		all.SizeBytes = m.GetSizeBytes()
		all.ExclusiveBytes += m.GetExclusiveBytes()
		all.Ranges = append(all.Ranges, m.GetRanges()...)
	}
}

func rangeBytes(m *holdfastv1.SnapshotRanges) (n int64) {
	for _, x := range m.GetRanges() {
		n += x.GetLength()
	}
	return n
}

// shownRanges is how many ranges a person is shown.
const shownRanges = 20

func (c *cli) snapshotDiff() *cobra.Command {
	var every bool
	cmd := &cobra.Command{
		Use: "diff OLDER NEWER", Short: "List what changed in a volume between two of its snapshots",
		Long: "Lists the parts of the volume that may differ between the two snapshots. Nothing\n" +
			"that differs is missing; as changes are kept in steps of 64 KiB, parts of what is\n" +
			"listed may be the same. A backup that has OLDER needs no more than this of NEWER.",
		Example: "  holdfast snapshot diff monday tuesday\n  holdfast snapshot diff monday tuesday --output json",
		Args:    exactly("the OLDER snapshot", "the NEWER snapshot"), ValidArgsFunction: c.snapshotArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := c.ranges(cmd.Context(), &holdfastv1.ListSnapshotRangesRequest{Base: args[0], Snapshot: args[1]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(m, func(w io.Writer) { diffTable(w, args[0], args[1], m, every) })
		},
	}
	cmd.Flags().BoolVar(&every, "all", false, fmt.Sprintf("show every range, not the first %d", shownRanges))
	return cmd
}

func diffTable(w io.Writer, older, newer string, m *holdfastv1.SnapshotRanges, every bool) {
	xs := m.GetRanges()
	if len(xs) == 0 {
		fmt.Fprintf(w, "Nothing changed between %s and %s (%s)\n", older, newer, api.Bytes(m.GetSizeBytes()))
		return
	}
	fmt.Fprintf(w, "Between %s and %s at most %s of %s changed, in %d ranges\n", older, newer, api.Bytes(rangeBytes(m)), api.Bytes(m.GetSizeBytes()), len(xs))
	g := grid{head: []string{"OFFSET", "LENGTH"}}
	for i, x := range xs {
		if i == shownRanges && !every {
			break
		}
		g.add(fmt.Sprint(x.GetOffset()), api.Bytes(x.GetLength()))
	}
	g.write(w, "  ")
	if n := len(xs) - shownRanges; n > 0 && !every {
		fmt.Fprintf(w, "  and %d more: use --all, or --output json\n", n)
	}
}

// snapshotSizes adds to a snapshot's view what it has and what it takes.
func (c *cli) snapshotSizes(ctx context.Context, w io.Writer, x *holdfastv1.Snapshot) {
	field(w, "logical", "%s, as the volume had", api.Bytes(x.GetSizeBytes()))
	m, err := c.ranges(ctx, &holdfastv1.ListSnapshotRangesRequest{Snapshot: x.GetId()})
	if err != nil {
		field(w, "allocated", "unknown: %v", err)
		return
	}
	field(w, "allocated", "%s of it have data", api.Bytes(rangeBytes(m)))
	field(w, "exclusive", "%s on each replica, which deleting it gives free", api.Bytes(m.GetExclusiveBytes()))
}
