package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/agent"
	"github.com/holdfast-storage/holdfast/replication"
)

// sink takes the values of one scrape.
type sink struct {
	e   *Exporter
	out chan<- prometheus.Metric
}

func (s sink) gauge(name string, v float64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(s.e.descs[name], prometheus.GaugeValue, v, labels...)
}

func (s sink) counter(name string, v uint64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(s.e.descs[name], prometheus.CounterValue, float64(v), labels...)
}

// histogram turns the buckets of a primary into cumulative ones.
func (s sink) histogram(name string, l *replication.Latencies, labels ...string) {
	buckets := make(map[float64]uint64, replication.LatencyBuckets-1)
	n := uint64(0)
	for i, c := range l.Buckets {
		n += c
		if i < replication.LatencyBuckets-1 {
			buckets[replication.LatencyBound(i).Seconds()] = n
		}
	}
	s.out <- prometheus.MustNewConstHistogram(s.e.descs[name], n, l.Sum.Seconds(), buckets, labels...)
}

func (s sink) pool(p holdfast.Pool) {
	id, dev := string(p.ID), p.Device
	s.gauge("holdfast_pool_size_bytes", float64(p.TotalBytes), id, dev)
	s.gauge("holdfast_pool_free_bytes", float64(p.FreeBytes), id, dev)
	s.gauge("holdfast_pool_failed_replicas", float64(len(p.Failed)), id, dev)
	for _, state := range []holdfast.PoolState{holdfast.PoolOnline, holdfast.PoolFull, holdfast.PoolFailed} {
		s.gauge("holdfast_pool_state", one(p.State == state), id, dev, string(state))
	}
}

func (s sink) volume(v agent.MeasuredVolume) {
	st := &v.Status
	r := &st.Record
	name := r.Name
	s.gauge("holdfast_volume_info", 1, name, string(r.ID), string(v.Kind), st.State)
	s.gauge("holdfast_volume_size_bytes", float64(st.SizeBytes), name)
	s.gauge("holdfast_volume_epoch", float64(st.Epoch), name)
	s.gauge("holdfast_volume_io_in_flight", float64(st.InFlight), name)
	s.gauge("holdfast_volume_failed_writes", float64(st.FailedWrites), name)
	s.gauge("holdfast_volume_replicas_wanted", float64(r.Spec.Replicas), name)
	s.gauge("holdfast_volume_replicas_in_sync", float64(len(r.InSyncReplicas())), name)
	s.gauge("holdfast_volume_replicas_needed", float64(r.Spec.MinInSync), name)
	s.io(name, &st.Counters)
	for i := range st.Peers {
		s.replica(name, &st.Peers[i])
	}
	s.scrub(name, st)
}

func (s sink) io(name string, c *replication.Counters) {
	for op, l := range map[string]*replication.Latencies{"read": &c.ReadTime, "write": &c.WriteTime, "trim": &c.TrimTime, "flush": &c.FlushTime} {
		s.histogram("holdfast_volume_io_seconds", l, name, op)
	}
	for op, n := range map[string]uint64{"read": c.ReadBytes, "write": c.WriteBytes, "trim": c.TrimBytes} {
		s.counter("holdfast_volume_io_bytes_total", n, name, op)
	}
	s.counter("holdfast_volume_io_expired_total", c.Expired, name)
	s.counter("holdfast_volume_repair_bytes_total", c.RepairBytes, name)
}

func (s sink) replica(volume string, p *replication.PeerStatus) {
	node := string(p.Replica.Node)
	s.gauge("holdfast_replica_in_sync", one(p.Replica.State == holdfast.InSync), volume, node)
	s.gauge("holdfast_replica_connected", one(p.Connected), volume, node)
	s.gauge("holdfast_replica_slow", one(p.Slow), volume, node)
	if p.Answers > 0 {
		s.gauge("holdfast_replica_answer_seconds", p.Answers.Seconds(), volume, node)
	}
	if p.Replica.State != holdfast.InSync {
		s.gauge("holdfast_volume_repair_left_bytes", float64(p.LeftBytes), volume, node)
	}
}

// scrub shows the newest scrub: the record has what came of it, the primary how
// one goes that is under way.
func (s sink) scrub(name string, st *replication.PrimaryStatus) {
	x := st.Record.Scrub
	if x == nil {
		return
	}
	blocks, bad, healed, unhealed := x.Blocks, x.Mismatches, x.Healed, x.Unhealed
	if x.Pending() && st.Scrub.ID == x.ID {
		blocks, bad, healed, unhealed = st.Scrub.Blocks, st.Scrub.Mismatches, st.Scrub.Healed, st.Scrub.Unhealed
	}
	s.gauge("holdfast_volume_scrub_pending", one(x.Pending()), name)
	s.gauge("holdfast_volume_scrub_blocks", float64(blocks), name)
	s.gauge("holdfast_volume_scrub_mismatches", float64(bad), name)
	s.gauge("holdfast_volume_scrub_healed", float64(healed), name)
	s.gauge("holdfast_volume_scrub_unhealed", float64(unhealed), name)
	if !x.Pending() {
		s.gauge("holdfast_volume_scrub_end_timestamp_seconds", float64(x.Ended.UnixMilli())/1000, name)
	}
}

// waits shows what waits, each kind once: the longest. The reason is the wait's
// first words, without what differs from one time to the next.
func (s sink) waits(m agent.Measures) {
	type key struct{ volume, what, reason, node string }
	longest := map[key]float64{}
	for id, ws := range m.Waits {
		for _, w := range ws {
			reason, _, _ := strings.Cut(w.For, ";")
			reason, _, _ = strings.Cut(reason, ":")
			k := key{m.Names[id], w.What, reason, string(w.Node)}
			longest[k] = max(longest[k], w.Long.Seconds())
		}
	}
	for k, v := range longest {
		s.gauge("holdfast_volume_waiting_seconds", v, k.volume, k.what, k.reason, k.node)
	}
}
