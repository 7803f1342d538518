package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// release is set by the linker for releases.
var release = ""

// releaseName is the release, else what the Go tool knows of the commit.
func releaseName() string {
	if release != "" {
		return release
	}
	rev, dirty := "", ""
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			switch {
			case s.Key == "vcs.revision":
				rev = s.Value[:min(len(s.Value), 12)]
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "+changes"
			}
		}
	}
	if rev == "" {
		return "development"
	}
	return "development-" + rev + dirty
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the release of this program", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(c.out, "holdfast %s %s/%s %s\n", releaseName(), runtime.GOOS, runtime.GOARCH, runtime.Version())
			return err
		},
	}
}
