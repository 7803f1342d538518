package agent

import (
	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// Measures are what is to be known of a node at a moment, for metrics.
type Measures struct {
	LeaseHeld bool
	Pools     []holdfast.Pool
	Volumes   []MeasuredVolume // those served here
	Waits     map[holdfast.VolumeID][]Wait
	Names     map[holdfast.VolumeID]string // of the volumes in Waits, as far as they are known
}

// MeasuredVolume is one volume served here.
type MeasuredVolume struct {
	Kind   holdfast.PrimaryKind
	Status replication.PrimaryStatus
}

// Measures takes stock. It takes each volume's lock for a moment.
func (a *Agent) Measures() Measures {
	m := Measures{Pools: a.poolInfos(nil), Waits: a.Waits(""), Names: map[holdfast.VolumeID]string{}}
	for _, x := range a.serving() {
		m.Volumes = append(m.Volumes, MeasuredVolume{Kind: x.kind, Status: x.vol.Status()})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	m.LeaseHeld = a.lease != nil && a.lease.Held()
	for id := range m.Waits {
		m.Names[id] = string(id)
		if r, ok := a.records[id]; ok {
			m.Names[id] = r.Name
		}
	}
	return m
}
