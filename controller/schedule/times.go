package schedule

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/holdfast-storage/holdfast"
)

// times says when a schedule is due.
type times struct{ cron cron.Schedule }

// parse reads a schedule's times. Errors are of kind Invalid and show how to write
// them.
func parse(x holdfast.Schedule) (times, error) {
	const how = `write minute, hour, day of month, month and day of week, as "0 3 * * *" (at 3:00 every day) or "*/15 * * * 1-5", or @hourly, @daily, @weekly, @monthly`
	bad := func(format string, a ...any) (times, error) {
		return times{}, holdfast.E("", holdfast.Invalid, fmt.Sprintf(format, a...))
	}
	switch {
	case strings.Contains(x.Cron, "TZ="):
		return bad("the time zone does not belong into %q; give it by itself", x.Cron)
	case strings.HasPrefix(x.Cron, "@every"), strings.HasPrefix(x.Cron, "@reboot"):
		return bad("%q depends on when somebody began to count; %s", x.Cron, how)
	}
	zone := time.UTC
	if x.Zone != "" {
		var err error
		if zone, err = time.LoadLocation(x.Zone); err != nil || zone == time.Local { // which differs from node to node
			return bad("the time zone %q is not known; write one as Europe/Berlin, or leave it out for UTC", x.Zone)
		}
	}
	c, err := cron.ParseStandard("CRON_TZ=" + zone.String() + " " + x.Cron)
	if err != nil {
		return bad("%q is not understood (%v); %s", x.Cron, err, how)
	}
	return times{c}, nil
}

// next is when it is due after t; zero when it is never.
func (t times) next(after time.Time) time.Time {
	due := t.cron.Next(after)
	if due.IsZero() {
		return due
	}
	return due.UTC()
}

// latest is when it was due last, after and not later than now. However long ago
// after is, not many times are looked at: it goes back step by step.
func (t times) latest(after, now time.Time) (time.Time, bool) {
	for _, back := range []time.Duration{time.Hour, 24 * time.Hour, 32 * 24 * time.Hour, 367 * 24 * time.Hour, 1 << 62} {
		from := now.Add(-back)
		if back == 1<<62 || from.Before(after) {
			from = after
		}
		var last time.Time
		for due := t.next(from); !due.IsZero() && !due.After(now); due = t.next(due) {
			last = due
		}
		if !last.IsZero() {
			return last, true
		}
		if from.Equal(after) {
			break
		}
	}
	return time.Time{}, false
}

// Next is when a schedule is due next; zero while it is paused, or if it cannot be
// understood.
func Next(x holdfast.Schedule, now time.Time) time.Time {
	t, err := parse(x)
	if err != nil || x.Paused {
		return time.Time{}
	}
	return t.next(now)
}
