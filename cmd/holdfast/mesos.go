package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
)

const mesosForgetHelp = `Makes the Mesos agent of this machine forget that it has a volume published.

After a reboot, an agent publishes again every volume that was published before,
although the tasks are gone. When one of them is attached to another node by now,
or deleted, that fails, and with it the whole CSI plugin: no task with a volume of
Holdfast starts on this agent any more. This removes what the agent has written
down of the volume; the volume and its data are not touched. Then restart the
agent, and it starts the plugin anew.

It is refused while anything of the volume is mounted here, as the agent would then
delete the files on it.`

func (c *cli) mesosCommand() *cobra.Command {
	return group("mesos", "Help a Mesos agent on this machine", c.mesosForget())
}

func (c *cli) mesosForget() *cobra.Command {
	var yes bool
	workDir := "/var/lib/mesos"
	cmd := &cobra.Command{
		Use: "forget VOLUME", Short: "Make this machine's Mesos agent forget a volume that has moved away", Long: mesosForgetHelp,
		Example: "  holdfast mesos forget db-1\n  holdfast mesos forget db-1 --work-dir /var/lib/mesos/slave   # DC/OS\n  systemctl restart mesos-agent",
		Args:    exactly("the VOLUME, as the agent calls it"),
		RunE: func(_ *cobra.Command, args []string) error {
			dirs, err := mesosVolumes(workDir, args[0])
			if err != nil {
				return err
			}
			if err := notMounted(args[0]); err != nil {
				return err
			}
			if !yes {
				if err := c.confirm(fmt.Sprintf("Remove %s?", strings.Join(dirs, ", "))); err != nil {
					return err
				}
			}
			for _, d := range dirs {
				if err := os.RemoveAll(d); err != nil {
					return holdfast.WrapKind("forget volume "+args[0], holdfast.Other, err)
				}
				fmt.Fprintf(c.out, "Removed %s\n", d)
			}
			if err := releaseMesosPaths(workDir, args[0]); err != nil {
				return err
			}
			_, err = io.WriteString(c.out, "Restart the agent now: systemctl restart mesos-agent (DC/OS: dcos-mesos-slave)\n")
			return holdfast.Wrap("answer", err)
		},
	}
	cmd.Flags().StringVar(&workDir, "work-dir", workDir, "the agent's work directory (DC/OS: /var/lib/mesos/slave)")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// mesosVolumes finds what agents wrote down of a volume: the folders
// WORK_DIR/csi/TYPE/NAME/volumes/VOLUME, whose names are percent-encoded.
func mesosVolumes(workDir, volume string) ([]string, error) {
	op := "forget volume " + volume
	all, err := filepath.Glob(filepath.Join(workDir, "csi", "*", "*", "volumes", "*"))
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	var dirs, names []string
	for _, d := range all {
		name := decoded(filepath.Base(d))
		if name == volume {
			dirs = append(dirs, d)
		}
		names = append(names, name)
	}
	switch {
	case len(dirs) > 0:
		return dirs, nil
	case len(names) == 0:
		return nil, holdfast.E(op, holdfast.NotFound, fmt.Sprintf("below %s no agent has written down any volume; is --work-dir right?", workDir))
	}
	slices.Sort(names)
	return nil, holdfast.E(op, holdfast.NotFound, "the agent knows no such volume; it knows: "+strings.Join(slices.Compact(names), ", "))
}

// releaseMesosPaths lets the agent remove the empty folders on which it had the
// volume mounted; the node service guards them while they are bare.
func releaseMesosPaths(workDir, volume string) error {
	all, err := filepath.Glob(filepath.Join(workDir, "csi", "*", "*", "mounts", "*"))
	if err != nil {
		return holdfast.WrapKind("forget volume "+volume, holdfast.Invalid, err)
	}
	var errs []error
	for _, d := range all {
		if decoded(filepath.Base(d)) == volume {
			errs = append(errs, mountpoint.ReleaseBelow(d))
		}
	}
	return errors.Join(errs...)
}

// decoded is a percent-encoded path component in plain text.
func decoded(s string) string {
	if t, err := url.PathUnescape(s); err == nil {
		return t
	}
	return s
}

// notMounted refuses a volume of which anything is mounted below a folder with its
// name: that is how Mesos names where it publishes volumes.
func notMounted(volume string) error {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return holdfast.WrapKind("read mounts", holdfast.Other, err)
	}
	mounts, err := mountinfo.GetMountsFromReader(bytes.NewReader(raw), nil)
	if err != nil {
		return holdfast.WrapKind("read mounts", holdfast.Other, err)
	}
	for _, m := range mounts {
		for part := range strings.SplitSeq(m.Mountpoint, "/") {
			if part == volume || decoded(part) == volume {
				return holdfast.E("forget volume "+volume, holdfast.InUse, fmt.Sprintf(
					"%s is mounted: stop the task that uses it, or unmount it; the agent deletes what is below a path that it does not know", m.Mountpoint))
			}
		}
	}
	return nil
}
