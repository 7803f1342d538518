package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestTheUnitOfAnInstallation: systemd has no complaint about it, and stops things in
// the order that keeps data: containers, filesystems, daemon, network.
func TestTheUnitOfAnInstallation(t *testing.T) {
	raw, err := os.ReadFile("../../deploy/systemd/holdfast.service")
	if err != nil {
		t.Fatal(err)
	}
	// systemd looks for the program.
	here, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "holdfast.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(raw), "/usr/bin/holdfast", here)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || strings.Contains(string(out), "holdfast.service") {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
	settings := map[string][]string{}
	for line := range strings.Lines(string(raw)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			settings[key] = append(settings[key], strings.Fields(value)...)
		}
	}
	for key, want := range map[string][]string{
		"After":     {"network.target", "network-online.target", "local-fs.target"},
		"Before":    {"remote-fs-pre.target", "docker.service", "containerd.service", "kubelet.service", "mesos-agent.service", "nomad.service"},
		"KillMode":  {"process"},
		"OOMPolicy": {"continue"},
	} {
		for _, w := range want {
			if !slices.Contains(settings[key], w) {
				t.Errorf("%s is %v, without %s", key, settings[key], w)
			}
		}
	}
}
