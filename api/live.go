package api

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// liveReader asks nodes what they serve and store.
type liveReader struct {
	nodes   NodeClients
	timeout time.Duration
}

// liveView is what the nodes that answered said.
type liveView struct {
	volumes  map[holdfast.VolumeID]map[holdfast.NodeID]*holdfastv1.NodeVolume
	answered map[holdfast.NodeID]bool
}

// read asks all the given nodes at once, for one volume or, with an empty id,
// for all. Nodes that do not answer in time are missing from the view.
func (l liveReader) read(ctx context.Context, volume holdfast.VolumeID, nodes []holdfast.NodeID) liveView {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	v := liveView{
		volumes:  map[holdfast.VolumeID]map[holdfast.NodeID]*holdfastv1.NodeVolume{},
		answered: map[holdfast.NodeID]bool{},
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range nodes {
		wg.Go(func() {
			vs, err := l.ask(ctx, volume, id)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				v.add(id, vs)
			}
		})
	}
	wg.Wait()
	return v
}

func (l liveReader) ask(ctx context.Context, volume holdfast.VolumeID, id holdfast.NodeID) ([]*holdfastv1.NodeVolume, error) {
	c, err := l.nodes.Client(ctx, id)
	if err != nil {
		return nil, err
	}
	resp, err := c.NodeVolumes(ctx, &holdfastv1.NodeVolumesRequest{VolumeId: string(volume)})
	if err != nil {
		return nil, err
	}
	return resp.GetVolumes(), nil
}

func (v liveView) add(id holdfast.NodeID, vs []*holdfastv1.NodeVolume) {
	v.answered[id] = true
	for _, nv := range vs {
		vol := holdfast.VolumeID(nv.GetVolumeId())
		if v.volumes[vol] == nil {
			v.volumes[vol] = map[holdfast.NodeID]*holdfastv1.NodeVolume{}
		}
		v.volumes[vol][id] = nv
	}
}

// primary is what the node that the record names as primary says; nil if there
// is none or it does not answer.
func (v liveView) primary(r *holdfast.Record) *holdfastv1.PrimaryStatus {
	if r.Primary == nil {
		return nil
	}
	return v.volumes[r.ID][r.Primary.Node].GetPrimary()
}

// unserved is the problem of a volume that is attached to a node which answers and
// does not serve it: it is being attached, or its device ended. Nil otherwise.
func (v liveView) unserved(r *holdfast.Record) *holdfastv1.Problem {
	at := r.AttachedTo()
	if at == "" || !v.answered[at] || v.primary(r) != nil {
		return nil
	}
	what := fmt.Sprintf("it is attached to node %s, which does not serve it now", at)
	if es := v.volumes[r.ID][at].GetEvents(); len(es) > 0 {
		what += "; the last that happened there: " + es[len(es)-1].GetWhat()
	}
	return &holdfastv1.Problem{Severity: Warning, Subject: "volume " + r.Name, What: what,
		Remedy: fmt.Sprintf("if it stays so, start the volume's task anew, or: holdfast volume attach %s --node %s", quote(r.Name), at)}
}

// peer is what the primary says about one replica; nil if nothing.
func peer(p *holdfastv1.PrimaryStatus, id holdfast.ReplicaID) *holdfastv1.PeerStatus {
	for _, x := range p.GetPeers() {
		if x.GetReplicaId() == string(id) {
			return x
		}
	}
	return nil
}
