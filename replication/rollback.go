package replication

import (
	"errors"

	"github.com/holdfast-storage/holdfast"
)

// ErrRolledBack is why a primary ends when a replica knows a history that the
// metadata store does not show. Such an end is of kind Corrupt; an operator has to
// decide.
var ErrRolledBack = errors.New("the metadata store was rolled back")

// refusal says why a Hello is refused after a promise. That of a later epoch
// whose history is another one than we know comes from a metadata store that was
// rolled back: who is in sync there may lack writes that we have (invariant 1).
func (r *Replica) refusal(newest Promise, m *Message) Status {
	grant := m.Hello.Grant
	switch {
	case m.Epoch < newest.Epoch:
		return StatusFenced
	case grant != newest.Grant && grant <= newest.Epoch, contradicts(r.store.State().Record, m.Hello.Record):
		return StatusRolledBack
	}
	return StatusOK
}

// contradicts says whether a record cannot be a successor of one that was shown
// before: who is in it since an epoch that the old one knows, must be in the old
// one too, and just so. A volume never shrinks.
func contradicts(old, next holdfast.Record) bool {
	if old.Version == 0 || next.Epoch < old.Epoch || mutant(MutateRollbackUnseen) {
		return false
	}
	if next.SizeBytes < old.SizeBytes {
		return true
	}
	for _, x := range next.Replicas {
		if x.Since == 0 || x.Since > old.Epoch {
			continue
		}
		was := old.Replica(x.ID)
		if was == nil || was.Since != x.Since || (was.State == holdfast.InSync) != (x.State == holdfast.InSync) {
			return true
		}
	}
	return false
}

// OnOutsiders is the event that nodes have said what they know, whether the record
// names their replicas or not: after all members were replaced, only a replica that
// an older record does not name may know the newer one. What comes while the volume
// is served already counts as well.
func (p *Primary) OnOutsiders(heard []Outsider) {
	p.takeover.asking = false
	for _, o := range heard {
		switch newest := max(o.Promise, o.Record.Epoch); {
		case p.phase == ended:
			return
		case newest > p.epoch:
			p.member.doubt = max(p.member.doubt, newest) // only the store can say who is right
		case contradicts(o.Record, p.rec) && !mutant(MutateRollbackGoOn):
			p.rolledBack(o.Node)
		}
	}
	if p.phase != ended {
		p.plan()
		p.tickTakeover(p.now())
	}
}

// rolledBack ends a primary that a replica has refused although the record names
// it: the replica was shown what the metadata store does not know any more. To
// go on without that replica could promote an older set in place of a newer one.
func (p *Primary) rolledBack(node holdfast.NodeID) {
	who := "a replica"
	if node != "" {
		who += " on node " + string(node)
	}
	p.end(&holdfast.Error{Op: "serve volume " + p.rec.Name, Kind: holdfast.Corrupt, Err: ErrRolledBack,
		Msg: who + " has seen another history than the metadata store shows: the store was restored from a backup; restore its newest state, or remove the replica if the store is right"})
}
