package dataplane

import "github.com/holdfast-storage/holdfast"

// Waiting says for what the I/O, or the take-over, of a volume waits that is served
// or being opened here; "" when it does not wait.
func (p *Plane) Waiting(id holdfast.VolumeID) string {
	v := p.find(id)
	if v == nil {
		return ""
	}
	defer p.release(v)
	v.lock()
	defer v.unlock()
	if v.primary == nil {
		return ""
	}
	return v.primary.machine.Status().WaitingFor
}
