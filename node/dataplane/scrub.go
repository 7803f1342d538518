package dataplane

import "github.com/holdfast-storage/holdfast"

// Scrub begins to compare the volume's in-sync replicas, as
// replication.Primary.Scrub does; Status says how it goes.
func (h *Volume) Scrub(id string, source holdfast.ReplicaID) {
	h.v.step(func() { h.machine.Scrub(id, source) })
}

// CancelScrub ends the present scrub, if there is one.
func (h *Volume) CancelScrub() { h.v.step(h.machine.CancelScrub) }
