package netcluster

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/holdfast-storage/holdfast"
)

// Lose makes a node lose a share of the packets that reach it, 1 to 99 percent. Keep
// ends it.
func (n Network) Lose(ctx context.Context, id string, percent int) error {
	return n.nft(ctx, id, fmt.Sprintf("table inet lossy {\n chain in {\n  type filter hook input priority 0;\n  iifname \"eth0\" numgen random mod 100 < %d drop\n }\n}\n", percent))
}

// Keep ends what Lose began; again is fine.
func (n Network) Keep(ctx context.Context, id string) error {
	return n.nft(ctx, id, "table inet lossy\ndelete table inet lossy\n")
}

func (n Network) nft(ctx context.Context, id, rules string) error {
	_, err := inNode(ctx, rules, "ip", "netns", "exec", n.Node(id), "nft", "--file", "-")
	return err
}

// slowKbit and slowQueue make a link that is slow and late: what waits in a full
// queue waits for about half a second.
const (
	slowKbit  = 4000
	slowQueue = 256 << 10 // bytes
)

// Slow makes what a node sends slow and late. Hurry ends it.
func (n Network) Slow(ctx context.Context, id string) error {
	_, err := inNode(ctx, "", "tc", "-n", n.Node(id), "qdisc", "replace", "dev", "eth0", "root", "tbf",
		"rate", fmt.Sprintf("%dkbit", slowKbit), "burst", "16kb", "limit", fmt.Sprint(slowQueue))
	return err
}

// Hurry ends what Slow began; again is fine.
func (n Network) Hurry(ctx context.Context, id string) error {
	slowed := func() (bool, error) {
		out, err := inNode(ctx, "", "tc", "-n", n.Node(id), "qdisc", "show", "dev", "eth0")
		return strings.Contains(out, "tbf"), err
	}
	if yes, err := slowed(); err != nil || !yes {
		return err
	}
	_, err := inNode(ctx, "", "tc", "-n", n.Node(id), "qdisc", "del", "dev", "eth0", "root")
	if err == nil {
		return nil
	}
	// Done again, it fails where it was killed after its work.
	if yes, seen := slowed(); seen == nil && !yes {
		return nil
	}
	return err
}

// QualityTools says whether the programs behind Lose and Slow are there. Errors:
// NotFound, with what to install.
func QualityTools() error {
	for program, pkg := range map[string]string{"nft": "nftables", "tc": "iproute2", "ip": "iproute2"} {
		if _, err := exec.LookPath(program); errors.Is(err, exec.ErrNotFound) {
			return holdfast.E("find "+program, holdfast.NotFound, "it is not installed; on Debian: apt-get install "+pkg)
		}
	}
	return nil
}
