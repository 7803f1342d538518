package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) volumeTable(w io.Writer, vs []*holdfastv1.Volume) {
	if len(vs) == 0 {
		fmt.Fprintln(w, "No volumes. Create one with: holdfast volume create NAME --size 10GiB")
		return
	}
	g := grid{head: []string{"NAME", "SIZE", "IN SYNC", "HEALTH", "ATTACHED TO", "REPLICAS ON", "AGE", "ID"}}
	now := time.Now()
	for _, v := range vs {
		g.add(v.GetName(), api.Bytes(v.GetSpec().GetSizeBytes()), fmt.Sprintf("%d/%d", inSync(v), v.GetSpec().GetReplicas()), c.colour(v.GetHealth()),
			dash(v.GetAttachedTo()), dash(replicaNodes(v)), since(v.GetCreated().AsTime(), now), shortID(v.GetId()))
	}
	g.write(w, "")
}

func inSync(v *holdfastv1.Volume) int {
	n := 0
	for _, r := range v.GetReplicas() {
		if r.GetState() == string(holdfast.InSync) {
			n++
		}
	}
	return n
}

func (c *cli) volumeInspect() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "inspect VOLUME", Aliases: []string{"show"}, Short: "Show a volume: its record and what its nodes say now",
		Args: exactly("the VOLUME"), ValidArgsFunction: c.volumeArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if watch {
				return c.watchVolume(cmd.Context(), args[0])
			}
			v, err := c.getVolume(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.show(v, func(w io.Writer) { c.volumeView(cmd.Context(), w, v) })
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show the progress of repairs until the volume is healthy")
	return cmd
}

func (c *cli) getVolume(ctx context.Context, name string) (*holdfastv1.Volume, error) {
	cl, err := c.volumes()
	if err != nil {
		return nil, err
	}
	v, err := cl.GetVolume(ctx, &holdfastv1.GetVolumeRequest{Volume: name})
	return v, c.explain(err)
}

// watchVolume follows repairs until the volume is healthy, then shows it. A
// daemon that does not answer for a moment is asked again.
func (c *cli) watchVolume(ctx context.Context, name string) error {
	b := newBar(c.err, "repair of "+name)
	defer b.end()
	for {
		v, err := c.getVolume(ctx, name)
		switch {
		case err == nil && v.GetHealth() == api.Healthy:
			b.set(1, 1, "healthy")
			b.end()
			return c.show(v, func(w io.Writer) { c.volumeView(ctx, w, v) })
		case err == nil:
			left, copied := repairOf(v)
			b.set(copied, max(copied+left, 1), fmt.Sprintf("%s, %s left", v.GetHealth(), api.Bytes(left)))
		case !errors.Is(err, holdfast.Unavailable):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func repairOf(v *holdfastv1.Volume) (left, copied int64) {
	for _, r := range v.GetReplicas() {
		if r.GetState() != string(holdfast.InSync) {
			left += r.GetLeftBytes()
			copied += r.GetCopiedBytes()
		}
	}
	return left, copied
}

// volumeView is a volume for people.
func (c *cli) volumeView(ctx context.Context, w io.Writer, v *holdfastv1.Volume) {
	s := v.GetSpec()
	fmt.Fprintf(w, "Volume %s: %s\n", v.GetName(), c.colour(v.GetHealth()))
	field(w, "id", "%s", v.GetId())
	size := fmt.Sprintf("%s (%d bytes)", api.Bytes(s.GetSizeBytes()), s.GetSizeBytes())
	if holdfast.RoundUp(s.GetSizeBytes()) > v.GetSizeBytes() {
		size += fmt.Sprintf(", growing: the device has %s", api.Bytes(v.GetSizeBytes()))
	}
	field(w, "size", "%s", size)
	field(w, "replicas", "%d wanted, %d in sync, writes need %d", s.GetReplicas(), inSync(v), s.GetMinInSync())
	field(w, "filesystem", "%s, device blocks of %d bytes", dash(s.GetFsType()), s.GetLogicalBlock())
	field(w, "locality", "%s%s%s", s.GetLocality(), only(" racks ", s.GetRacks()), only(" zones ", s.GetZones()))
	if v.GetAttachedTo() != "" {
		at := v.GetAttachedTo()
		if p := v.GetLive().GetDevicePath(); p != "" {
			at += " as " + p
		}
		field(w, "attached to", "%s", at)
	} else {
		field(w, "attached to", "-")
	}
	c.liveView(w, v)
	c.originLine(ctx, w, v)
	restoreLine(w, v)
	field(w, "policy", "%s", policyText(s))
	if s.GetLimits() != nil {
		field(w, "limits", "%s", limitsText(s.GetLimits()))
	}
	if v.GetScrub() != nil {
		field(w, "scrub", "%s", scrubLine(v.GetScrub(), time.Now()))
	}
	field(w, "epoch", "%d", v.GetEpoch())
	field(w, "created", "%s (%s ago)", v.GetCreated().AsTime().Local().Format(time.DateTime), since(v.GetCreated().AsTime(), time.Now()))
	if l := labels(v); l != "" {
		field(w, "labels", "%s", l)
	}
	if len(s.GetParameters()) > 0 {
		field(w, "parameters", "%s", pairs(s.GetParameters()))
	}
	c.replicaTable(w, v)
	c.snapshotsOf(ctx, w, v)
	waitsView(w, v.GetWaits())
	c.problems(w, v.GetProblems())
	eventsView(w, v.GetEvents())
}

// liveView is what the primary says.
func (c *cli) liveView(w io.Writer, v *holdfastv1.Volume) {
	p := v.GetPrimary()
	if p == nil {
		return
	}
	l := v.GetLive()
	if l == nil {
		field(w, "served by", "%s (%s primary, granted in epoch %d), which does not answer", p.GetNode(), p.GetKind(), p.GetGrant())
		return
	}
	field(w, "served by", "%s (%s primary, granted in epoch %d): %s", p.GetNode(), p.GetKind(), p.GetGrant(), dash(l.GetState()))
	field(w, "I/O", "%d reads (%s), %d writes (%s) since it serves", l.GetReads(), api.Bytes(int64(l.GetReadBytes())), l.GetWrites(), api.Bytes(int64(l.GetWriteBytes())))
	if l.GetWaitingFor() != "" {
		field(w, "waiting", "for %s, since %s", l.GetWaitingFor(), (time.Duration(l.GetWaitingMillis()) * time.Millisecond).Round(100*time.Millisecond))
	}
}

func (c *cli) replicaTable(w io.Writer, v *holdfastv1.Volume) {
	fmt.Fprintln(w, "\nReplicas")
	g := grid{head: []string{"NODE", "STATE", "SINCE EPOCH", "NODE IS", "CONNECTED", "ON DISK", "POOL", "ID", "REPAIR"}}
	for _, r := range v.GetReplicas() {
		alive, conn, alloc := "dead", "-", "-"
		if r.GetNodeAlive() {
			alive = "alive"
		}
		if v.GetLive() != nil {
			conn = yesNo(r.GetConnected())
		}
		if r.GetAllocatedBytes() > 0 {
			alloc = api.Bytes(r.GetAllocatedBytes())
		}
		repair := repairText(r.GetCopiedBytes(), r.GetLeftBytes(), r.GetRepairBytes())
		if r.GetFailure() != "" {
			repair = "failed: " + r.GetFailure()
		} else if r.GetMessage() != "" {
			repair = strings.TrimPrefix(repair+": "+r.GetMessage(), ": ")
		}
		g.add(r.GetNode(), c.colour(r.GetState()), fmt.Sprint(r.GetSince()), c.colour(alive), conn, alloc, shortID(r.GetPool()), shortID(r.GetId()), dash(repair))
	}
	g.write(w, "  ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func only(what string, in []string) string {
	if len(in) == 0 {
		return ""
	}
	return ", only" + what + strings.Join(in, ", ")
}

func labels(v *holdfastv1.Volume) string { return pairs(v.GetSpec().GetLabels()) }

func pairs(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
