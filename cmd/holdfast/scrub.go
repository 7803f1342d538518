package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) volumeScrub() *cobra.Command {
	var watch bool
	q := &holdfastv1.ScrubVolumeRequest{}
	cmd := &cobra.Command{
		Use: "scrub VOLUME", Short: "Compare a volume's replicas, and repair damaged ones",
		Long: "Compares what the in-sync replicas hold, block by block, while the volume is in use.\n" +
			"A replica whose copy of a block differs from the majority's (with two replicas: from\n" +
			"that of the one in sync for longest) is repaired. It goes on without this command;\n" +
			"see it with: holdfast volume inspect VOLUME",
		Example: "  holdfast volume scrub db-1 --watch\n  holdfast volume scrub db-1 --source n2   # its copies are right, whatever the others hold\n  holdfast volume scrub db-1 --cancel",
		Args:    exactly("the VOLUME"), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.volumes()
			if err != nil {
				return err
			}
			if watch && q.GetCancel() {
				return usage(cmd, fmt.Errorf("--watch and --cancel exclude each other"))
			}
			q.Volume = args[0]
			v, err := cl.ScrubVolume(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			if watch {
				if v, err = c.watchScrub(cmd.Context(), v); err != nil {
					return err
				}
			}
			if err := c.show(v, func(w io.Writer) { fmt.Fprintf(w, "Volume %s: scrub %s\n", v.GetName(), scrubText(v.GetScrub())) }); err != nil {
				return err
			}
			if n := v.GetScrub().GetUnhealed(); n > 0 && watch {
				return holdfast.E("scrub volume "+v.GetName(), holdfast.Corrupt, fmt.Sprintf("%d blocks still differ: scrub again when all its replicas are in sync, so that a majority can decide; if they differ then too, a disk does not keep what is written: see the logs of the replicas' nodes, and name the node that is right with --source", n))
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show how it goes until it has ended")
	cmd.Flags().StringVar(&q.Source, "source", "", "the node or replica whose copies are right, where no majority says so")
	cmd.Flags().BoolVar(&q.Cancel, "cancel", false, "end the scrub that is to be done")
	return cmd
}

// watchScrub follows a scrub to its end. A daemon that does not answer for a
// moment is asked again.
func (c *cli) watchScrub(ctx context.Context, v *holdfastv1.Volume) (*holdfastv1.Volume, error) {
	id := v.GetScrub().GetId()
	b := newBar(c.err, "scrub of "+v.GetName())
	defer b.end()
	for {
		if s := v.GetScrub(); s.GetEnded() != nil || s.GetId() != id {
			b.set(1, 1, s.GetState())
			return v, nil
		} else {
			b.set(s.GetDoneBytes(), max(s.GetTotalBytes(), 1), scrubText(s))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
		now, err := c.getVolume(ctx, v.GetId())
		switch {
		case err == nil:
			v = now
		case !errors.Is(err, holdfast.Unavailable):
			return nil, err
		}
	}
}

// scrubText is a scrub in one line.
func scrubText(s *holdfastv1.Scrub) string {
	if s == nil {
		return "never"
	}
	text := fmt.Sprintf("%s: %d blocks compared", s.GetState(), s.GetBlocks())
	if s.GetWaitingFor() != "" {
		text = fmt.Sprintf("%s for %s: %d blocks compared", s.GetState(), s.GetWaitingFor(), s.GetBlocks())
	}
	if s.GetMismatches() == 0 && s.GetUnhealed() == 0 {
		return text + ", no damage found"
	}
	text += fmt.Sprintf(", %d damaged, %d healed", s.GetMismatches(), s.GetHealed())
	if s.GetUnhealed() > 0 {
		text += fmt.Sprintf(", %d differ still", s.GetUnhealed())
	}
	return text
}

// scrubLine is scrubText with when it was.
func scrubLine(s *holdfastv1.Scrub, now time.Time) string {
	if s.GetEnded() == nil {
		return scrubText(s)
	}
	return scrubText(s) + ", " + since(s.GetEnded().AsTime(), now) + " ago"
}
