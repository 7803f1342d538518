package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// askLimit bounds one question to one node.
const askLimit = 3 * time.Second

// ask calls f with the nodes' API, one after the other, until one answers.
func (r *run) ask(ctx context.Context, f func(context.Context, holdfastv1.ClusterServiceClient, holdfastv1.VolumeServiceClient) error) error {
	var errs []error
	for _, m := range r.f.machines {
		if m.process() == nil {
			continue
		}
		cc, err := r.conns.Conn("unix://" + r.f.apiSocket(m.node()))
		if err == nil {
			ctx, cancel := context.WithTimeout(ctx, askLimit)
			err = f(ctx, holdfastv1.NewClusterServiceClient(cc), holdfastv1.NewVolumeServiceClient(cc))
			cancel()
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func (r *run) volume(ctx context.Context, name string) (*holdfastv1.Volume, error) {
	var v *holdfastv1.Volume
	err := r.ask(ctx, func(ctx context.Context, _ holdfastv1.ClusterServiceClient, c holdfastv1.VolumeServiceClient) error {
		var err error
		v, err = c.GetVolume(ctx, &holdfastv1.GetVolumeRequest{Volume: name})
		return err
	})
	return v, err
}

func (r *run) nodes(ctx context.Context) ([]*holdfastv1.Node, error) {
	var ns []*holdfastv1.Node
	err := r.ask(ctx, func(ctx context.Context, c holdfastv1.ClusterServiceClient, _ holdfastv1.VolumeServiceClient) error {
		ls, err := c.ListNodes(ctx, &holdfastv1.ListNodesRequest{})
		ns = ls.GetNodes()
		return err
	})
	return ns, err
}

// statusAt is how one node sees the cluster.
func (r *run) statusAt(ctx context.Context, node string) (*holdfastv1.ClusterStatus, error) {
	cc, err := r.conns.Conn("unix://" + r.f.apiSocket(node))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return holdfastv1.NewClusterServiceClient(cc).GetStatus(ctx, &holdfastv1.GetStatusRequest{})
}

// watchNodes keeps up to date which nodes the cluster takes for dead.
func (r *run) watchNodes(ctx context.Context) {
	for sleep(ctx, time.Second) {
		ns, err := r.nodes(ctx)
		if err != nil {
			continue
		}
		dead := map[string]bool{}
		for _, n := range ns {
			dead[n.GetId()] = !n.GetAlive()
		}
		r.mu.Lock()
		r.dead = dead
		r.mu.Unlock()
	}
}

func (r *run) isDead(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dead[node] || r.f.on(node) == nil
}

// cli runs the command line against the nodes, one after the other, until one
// answers.
func (f *fleet) cli(ctx context.Context, args ...string) (string, error) {
	errs := []error{holdfast.E("run the command line", holdfast.Unavailable, fmt.Sprintf("no node answers to %v", args))}
	for _, m := range f.machines {
		if m.process() == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		out, err := netcluster.Output(exec.CommandContext(ctx, f.o.binary, append([]string{"--endpoint", "unix://" + f.apiSocket(m.node())}, args...)...))
		cancel()
		if err == nil {
			return out, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}
