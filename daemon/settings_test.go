package daemon

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/placement"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	"github.com/holdfast-storage/holdfast/docs"
	"github.com/holdfast-storage/holdfast/replication"
)

// TestTheExampleIsWholeAndTrue loads docs/node.yaml strictly: it names every
// setting there is, and what it calls defaults are those.
func TestTheExampleIsWholeAndTrue(t *testing.T) {
	path := filepath.Join("..", "docs", "node.yaml")
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != docs.NodeYAML {
		t.Error("the program shows another example")
	}
	for _, name := range settingNames(reflect.TypeFor[Config]()) {
		if !strings.Contains(string(raw), name+":") {
			t.Errorf("the example does not name the setting %s", name)
		}
	}
	if got, want := c.Placement.policy(), placement.DefaultPolicy(); got != want || (Placement{}).policy() != want {
		t.Errorf("placement: the example has %+v, the default is %+v", got, want)
	}
	if c.Placement.SnapshotPercent != lifecycle.DefaultSnapshotPercent {
		t.Errorf("snapshotPercent: the example has %d, the default is %d", c.Placement.SnapshotPercent, lifecycle.DefaultSnapshotPercent)
	}
	if got, want := c.Replication.primary(), replication.DefaultConfig(); !reflect.DeepEqual(got, want) || !reflect.DeepEqual((Replication{}).primary(), want) {
		t.Errorf("replication: the example has %+v, the default is %+v", got, want)
	}
	l := reconcile.Limits{ReplaceAfter: 10 * time.Minute, Together: 5 * time.Minute, RefuseFor: 10 * time.Minute, Rebuilds: 8, RebuildsPerNode: 2}
	if got := c.limits(); got != l {
		t.Errorf("reconcile: the example has %+v, the default is %+v", got, l)
	}
	d := DefaultConfig()
	if c.Times != d.Times || c.Log != d.Log || !reflect.DeepEqual(c.API, d.API) || c.CSI != d.CSI || c.StateDir != d.StateDir || c.RunDir != d.RunDir || c.DataPort != d.DataPort || c.NodePort != d.NodePort {
		t.Errorf("what the example calls defaults is not: %+v", c)
	}
}

// settingNames lists the names of all members, also of members' members.
func settingNames(t reflect.Type) []string {
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(append(names, name), settingNames(t.Field(i).Type)...)
	}
	return names
}

func read(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(path, []byte("node: n1\netcd: {embedded: {}}\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

func TestSettingsReachTheParts(t *testing.T) {
	c, err := read(t, `
csiOptions: {agentView: true, withoutPublish: true, noStaging: true, ignoreUnknownParameters: true, defaultSize: 2G, reportedOvercommit: 1.5}
placement: {overcommit: 2, minFree: 0}
reconcile: {rebuilds: 3, rebuildsPerNode: 1, together: 1m, refuseFor: 2m}
replication: {silentAfter: 3s, reconnectFor: 1s, repairRate: 0}
times: {replaceAfter: 1h}
`)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Placement.policy(), (placement.Policy{Overcommit: 2}); got != want {
		t.Errorf("policy %+v, want %+v", got, want)
	}
	l := reconcile.Limits{ReplaceAfter: time.Hour, Together: time.Minute, RefuseFor: 2 * time.Minute, Rebuilds: 3, RebuildsPerNode: 1}
	if got := c.limits(); got != l {
		t.Errorf("limits %+v, want %+v", got, l)
	}
	p := c.Replication.primary()
	if p.SilentAfter != 3*time.Second || p.ReconnectFor != time.Second || p.RepairRate != 0 || p.ReadWindow != replication.DefaultConfig().ReadWindow {
		t.Errorf("primary %+v", p)
	}
	cc := c.csiController()
	if cc.Agent != "n1" || !cc.WithoutPublish || !cc.IgnoreUnknownParameters || cc.DefaultBytes != 2<<30 || cc.ReportedOvercommit != 1.5 {
		t.Errorf("CSI %+v", cc)
	}
	// The demonstration writes configurations: what is written is read again.
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var again Config
	if err := yaml.UnmarshalStrict(text, &again); err != nil || !reflect.DeepEqual(again.Placement, c.Placement) || !reflect.DeepEqual(again.Replication.primary(), p) {
		t.Errorf("written and read again: %v\n%s", err, text)
	}
}

func TestMistakesInSettingsAreNamed(t *testing.T) {
	for text, says := range map[string]string{
		"placement: {snapshotPercent: 101}":                               "placement.snapshotPercent",
		"processors: two":                                                 "one of auto, one, all",
		"placement: {overcommit: 0.5}":                                    "placement.overcommit",
		"placement: {minFree: lots}":                                      "lots",
		"placement: {minFre: 1}":                                          "minFre",
		"reconcile: {rebuilds: -1}":                                       "reconcile.rebuilds",
		"reconcile: {together: -1m}":                                      "reconcile.together",
		"replication: {silentAfter: 100ms}":                               "replication.silentAfter",
		"replication: {reconnectFor: 5s}":                                 "replication.reconnectFor",
		"replication: {repairRate: -1}":                                   "-1",
		"csiOptions: {reportedOvercommit: 9}":                             "csiOptions.reportedOvercommit",
		"csiOptions: {defaultSize: 1}":                                    "csiOptions.defaultSize",
		"csiOptions: {agent: n1}":                                         "agent",
		"placement: {overcommit: 2}\ncsiOptions: {reportedOvercommit: 3}": "placement.overcommit, which is 2",
	} {
		_, err := read(t, text)
		if !errors.Is(err, holdfast.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v of kind %v, want kind invalid with %q", text, err, holdfast.KindOf(err), says)
		}
	}
}

func TestWhatMountUtilsLogsComesInOurFormat(t *testing.T) {
	var b bytes.Buffer
	routeKlog(slog.New(slog.NewJSONHandler(&b, nil)))
	t.Cleanup(klog.ClearLogger)
	klog.Errorf("Mount failed: %v", 32)
	klog.Flush()
	if got := b.String(); !strings.HasPrefix(got, "{") || !strings.Contains(got, "Mount failed: 32") || !strings.Contains(got, `"part":"mount"`) {
		t.Errorf("logged %q", got)
	}
}
