package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (c *cli) scheduleCommand() *cobra.Command {
	g := group("schedule", "Take snapshots at times, and keep those that are wanted",
		c.scheduleCreate(), c.scheduleList(), c.scheduleInspect(), c.schedulePause(), c.scheduleResume(), c.scheduleDelete())
	g.Aliases = []string{"schedules"}
	return g
}

func (c *cli) schedules() (holdfastv1.ScheduleServiceClient, error) {
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewScheduleServiceClient(conn), nil
}

// scheduleArgs completes the names of schedules.
func (c *cli) scheduleArgs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cl, err := c.schedules()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ls, err := cl.ListSchedules(cmd.Context(), &holdfastv1.ListSchedulesRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, x := range ls.GetSchedules() {
		names = append(names, x.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) scheduleCreate() *cobra.Command {
	q := &holdfastv1.CreateScheduleRequest{}
	var keep string
	cmd := &cobra.Command{
		Use: "create NAME --cron WHEN (--volume VOLUME | --label KEY=VALUE) (--keep-last N | --keep-for AGE)", Short: "Take snapshots at times",
		Long: "Takes a snapshot of a volume, or of all volumes with certain labels, whenever it is\n" +
			"due, and deletes those that it has taken when they are not to be kept any longer.\n" +
			"With both --keep-last and --keep-for a snapshot is kept while either says so; the\n" +
			"newest one is always kept. Other snapshots are left alone. Runs that are missed,\n" +
			"as nobody leads, make one snapshot together.",
		Example: "  holdfast schedule create nightly --cron '0 3 * * *' --zone Europe/Berlin --volume db-1 --keep-last 7\n" +
			"  holdfast schedule create hourly --cron @hourly --label tier=gold --keep-for 2d",
		Args: exactly("the schedule's NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Name = args[0]
			var err error
			if q.KeepSeconds, err = parseAge(keep); err != nil {
				return usage(cmd, err)
			}
			cl, err := c.schedules()
			if err != nil {
				return err
			}
			x, err := cl.CreateSchedule(cmd.Context(), q)
			if err != nil {
				return c.explain(err)
			}
			return c.show(x, func(w io.Writer) {
				fmt.Fprintf(w, "Schedule %s takes snapshots of %s, next at %s\n", x.GetName(), scheduledFor(x), clock(x.GetNextRun()))
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Cron, "cron", "", "when: minute, hour, day of month, month, day of week, or @hourly, @daily, @weekly, @monthly")
	f.StringVar(&q.Zone, "zone", "", "time zone of --cron, such as Europe/Berlin (default UTC)")
	f.StringVar(&q.Volume, "volume", "", "the volume to take snapshots of")
	f.StringToStringVar(&q.Labels, "label", nil, "take snapshots of all volumes with these labels, key=value")
	f.Int32Var(&q.KeepLast, "keep-last", 0, "keep so many of each volume")
	f.StringVar(&keep, "keep-for", "", "keep them so long: 36h, 14d, 8w")
	_ = cmd.RegisterFlagCompletionFunc("volume", c.volumeArgs)
	return cmd
}

// parseAge reads a duration that may have days and weeks, in seconds.
func parseAge(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	unit := map[byte]int64{'d': 24 * 3600, 'w': 7 * 24 * 3600}[text[len(text)-1]]
	if unit > 0 {
		n, err := strconv.ParseInt(text[:len(text)-1], 10, 32)
		if err == nil && n > 0 {
			return n * unit, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second {
		return 0, fmt.Errorf("the age %q is not understood; write one as 36h, 14d or 8w", text)
	}
	return int64(d / time.Second), nil
}

// age is how parseAge would read it.
func age(seconds int64) string {
	switch {
	case seconds%(24*3600) == 0:
		return fmt.Sprintf("%dd", seconds/(24*3600))
	case seconds%3600 == 0:
		return fmt.Sprintf("%dh", seconds/3600)
	}
	return (time.Duration(seconds) * time.Second).String()
}

// scheduledFor says of what a schedule takes snapshots.
func scheduledFor(x *holdfastv1.Schedule) string {
	switch {
	case x.GetVolume() != "":
		return "volume " + x.GetVolume()
	case x.GetVolumeId() != "":
		return "volume " + x.GetVolumeId() + ", which is gone"
	}
	return fmt.Sprintf("volumes with %s (%d)", labelText(x.GetLabels()), x.GetVolumes())
}

func labelText(ls map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(ls)) {
		out = append(out, k+"="+ls[k])
	}
	return strings.Join(out, " ")
}

// keeps says what a schedule keeps.
func keeps(x *holdfastv1.Schedule) string {
	var out []string
	if n := x.GetKeepLast(); n > 0 {
		out = append(out, fmt.Sprintf("last %d", n))
	}
	if n := x.GetKeepSeconds(); n > 0 {
		out = append(out, age(n))
	}
	return strings.Join(out, ", ")
}

func clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Local().Format(time.DateTime)
}

// scheduleState is a schedule's state in one word.
func scheduleState(x *holdfastv1.Schedule) string {
	switch {
	case x.GetPaused():
		return "paused"
	case x.GetProblem() != "":
		return "failed"
	}
	return "ready"
}

func (c *cli) scheduleList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List schedules", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.schedules()
			if err != nil {
				return err
			}
			ls, err := cl.ListSchedules(cmd.Context(), &holdfastv1.ListSchedulesRequest{})
			if err != nil {
				return c.explain(err)
			}
			return c.show(ls, func(w io.Writer) {
				if len(ls.GetSchedules()) == 0 {
					fmt.Fprintln(w, "No schedules. Make one with: holdfast schedule create NAME --cron '0 3 * * *' --volume VOLUME --keep-last 7")
					return
				}
				g := grid{head: []string{"NAME", "WHEN", "OF", "KEEPS", "STATE", "LAST RUN", "NEXT RUN", "SNAPSHOTS"}}
				for _, x := range ls.GetSchedules() {
					g.add(x.GetName(), strings.TrimSpace(x.GetCron()+" "+x.GetZone()), scheduledFor(x), keeps(x), c.colour(scheduleState(x)),
						clock(x.GetLastRun()), clock(x.GetNextRun()), fmt.Sprint(x.GetKept()))
				}
				g.write(w, "")
			})
		},
	}
}

func (c *cli) scheduleInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect SCHEDULE", Aliases: []string{"show"}, Short: "Show a schedule with the snapshots that it keeps",
		Args: exactly("the SCHEDULE"), ValidArgsFunction: c.scheduleArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.schedules()
			if err != nil {
				return err
			}
			x, err := cl.GetSchedule(cmd.Context(), &holdfastv1.GetScheduleRequest{Schedule: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(x, func(w io.Writer) { c.scheduleView(w, x) })
		},
	}
}

func (c *cli) scheduleView(w io.Writer, x *holdfastv1.Schedule) {
	fmt.Fprintf(w, "Schedule %s: %s\n", x.GetName(), c.colour(scheduleState(x)))
	zone := x.GetZone()
	if zone == "" {
		zone = "UTC"
	}
	field(w, "when", "%s, %s", x.GetCron(), zone)
	field(w, "of", "%s", scheduledFor(x))
	field(w, "keeps", "%s of each volume, and always the newest", keeps(x))
	field(w, "created", "%s", clock(x.GetCreated()))
	field(w, "last run", "%s", clock(x.GetLastRun()))
	field(w, "next run", "%s", clock(x.GetNextRun()))
	if x.GetProblem() != "" {
		field(w, "problem", "%s", x.GetProblem())
	}
	if len(x.GetSnapshots()) > 0 {
		fmt.Fprintln(w, "\nSnapshots")
		c.snapshotTable(w, x.GetSnapshots())
	}
}

// scheduleChange is pausing or resuming.
func (c *cli) scheduleChange(cmd *cobra.Command, f func(holdfastv1.ScheduleServiceClient, string) (*holdfastv1.Schedule, error), done string) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = exactly("the SCHEDULE"), c.scheduleArgs
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		cl, err := c.schedules()
		if err != nil {
			return err
		}
		x, err := f(cl, args[0])
		if err != nil {
			return c.explain(err)
		}
		return c.show(x, func(w io.Writer) { fmt.Fprintf(w, "Schedule %s %s\n", x.GetName(), done) })
	}
	return cmd
}

func (c *cli) schedulePause() *cobra.Command {
	cmd := &cobra.Command{Use: "pause SCHEDULE", Short: "Take and delete no snapshots until it is resumed"}
	return c.scheduleChange(cmd, func(cl holdfastv1.ScheduleServiceClient, name string) (*holdfastv1.Schedule, error) {
		return cl.PauseSchedule(cmd.Context(), &holdfastv1.PauseScheduleRequest{Schedule: name})
	}, "is paused: nothing is taken, nothing deleted")
}

func (c *cli) scheduleResume() *cobra.Command {
	cmd := &cobra.Command{Use: "resume SCHEDULE", Short: "Go on; what was due meanwhile is not done any more"}
	return c.scheduleChange(cmd, func(cl holdfastv1.ScheduleServiceClient, name string) (*holdfastv1.Schedule, error) {
		return cl.ResumeSchedule(cmd.Context(), &holdfastv1.ResumeScheduleRequest{Schedule: name})
	}, "goes on")
}

func (c *cli) scheduleDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete SCHEDULE", Aliases: []string{"rm"}, Short: "Delete a schedule; the snapshots that it has taken stay",
		Args: exactly("the SCHEDULE"), ValidArgsFunction: c.scheduleArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return holdfast.E("delete schedule", holdfast.Invalid, "name the schedule to delete")
			}
			cl, err := c.schedules()
			if err != nil {
				return err
			}
			answer, err := cl.DeleteSchedule(cmd.Context(), &holdfastv1.DeleteScheduleRequest{Schedule: args[0]})
			if err != nil {
				return c.explain(err)
			}
			return c.show(answer, func(w io.Writer) {
				fmt.Fprintf(w, "Schedule %s is deleted; the snapshots that it has taken stay\n", args[0])
			})
		},
	}
}
