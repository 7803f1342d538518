package metrics

import (
	"fmt"
	"strings"
)

const (
	callSeconds = "holdfast_metadata_call_seconds"
	callErrors  = "holdfast_metadata_errors_total"
)

// Metric is one row of the table: all that is exported besides what the Go and
// process collectors of the Prometheus library add.
type Metric struct {
	Name   string
	Kind   string // gauge, counter or histogram
	Labels []string
	Help   string
	pushed bool // kept by the library's own types
}

// Metrics is the table.
func Metrics() []Metric {
	vol, rep, pool := []string{"volume"}, []string{"volume", "node"}, []string{"pool", "device"}
	return []Metric{
		{Name: "holdfast_build_info", Kind: "gauge", Labels: []string{"node", "release"}, Help: "1; which daemon this is."},
		{Name: "holdfast_node_lease_held", Kind: "gauge", Help: "1 while the node's lease in the metadata store is held; else others may take its volumes."},
		{Name: "holdfast_node_kept", Kind: "gauge", Help: "1 while the daemon has a keeper, so that its devices outlive it; 0 when that was lost, or is not configured."},
		{Name: "holdfast_node_volumes", Kind: "gauge", Labels: []string{"kind"}, Help: "Volumes served on this node: for a client, or for their maintenance."},

		{Name: "holdfast_pool_size_bytes", Kind: "gauge", Labels: pool, Help: "Size of the pool."},
		{Name: "holdfast_pool_free_bytes", Kind: "gauge", Labels: pool, Help: "What replicas may still take, the reserve excluded."},
		{Name: "holdfast_pool_state", Kind: "gauge", Labels: []string{"pool", "device", "state"}, Help: "1 for the state that the pool has: online, full (writes that need space wait) or failed."},
		{Name: "holdfast_pool_failed_replicas", Kind: "gauge", Labels: pool, Help: "Replicas on the pool that are served no more."},

		{Name: "holdfast_volume_info", Kind: "gauge", Labels: []string{"volume", "id", "kind", "state"}, Help: "1 for each volume served on this node, as what, and how far its primary is."},
		{Name: "holdfast_volume_size_bytes", Kind: "gauge", Labels: vol, Help: "Size of the device."},
		{Name: "holdfast_volume_io_seconds", Kind: "histogram", Labels: []string{"volume", "op"}, Help: "Time from the device's request to the answer, of read, write, trim and flush requests answered well; its count is their number."},
		{Name: "holdfast_volume_io_bytes_total", Kind: "counter", Labels: []string{"volume", "op"}, Help: "Bytes read, written and trimmed by the device."},
		{Name: "holdfast_volume_io_expired_total", Kind: "counter", Labels: vol, Help: "Requests that failed as they had waited for longer than the volume's I/O timeout."},
		{Name: "holdfast_volume_io_in_flight", Kind: "gauge", Labels: vol, Help: "Requests under way or waiting."},
		{Name: "holdfast_volume_failed_writes", Kind: "gauge", Labels: vol, Help: "Writes that failed so and are still in flight: their range is not read before it is the same everywhere."},
		{Name: "holdfast_volume_epoch", Kind: "gauge", Labels: vol, Help: "Epoch: it grows with every grant and every change of the in-sync set."},
		{Name: "holdfast_volume_replicas_wanted", Kind: "gauge", Labels: vol, Help: "Replicas asked for."},
		{Name: "holdfast_volume_replicas_in_sync", Kind: "gauge", Labels: vol, Help: "Replicas in sync."},
		{Name: "holdfast_volume_replicas_needed", Kind: "gauge", Labels: vol, Help: "In-sync replicas without which writes wait (minInSync)."},
		{Name: "holdfast_volume_waiting_seconds", Kind: "gauge", Labels: []string{"volume", "what", "reason", "node"}, Help: "For how long something of the volume has waited on this node: I/O, attach, detach, repair, resize or scrub; absent when nothing waits."},
		{Name: "holdfast_volume_repair_left_bytes", Kind: "gauge", Labels: rep, Help: "What the replica on the node still lacks, while it is repaired."},
		{Name: "holdfast_volume_repair_bytes_total", Kind: "counter", Labels: vol, Help: "Bytes sent to replicas to repair them."},

		{Name: "holdfast_replica_in_sync", Kind: "gauge", Labels: rep, Help: "1 if the replica on the node is in sync."},
		{Name: "holdfast_replica_connected", Kind: "gauge", Labels: rep, Help: "1 if the primary talks to it."},
		{Name: "holdfast_replica_answer_seconds", Kind: "gauge", Labels: rep, Help: "Median time in which it has lately answered writes; absent when there were too few."},
		{Name: "holdfast_replica_slow", Kind: "gauge", Labels: rep, Help: "1 if it has been much slower than the others for a while."},

		{Name: "holdfast_volume_scrub_end_timestamp_seconds", Kind: "gauge", Labels: vol, Help: "When the newest scrub ended; absent while it is to be done, and if there was none."},
		{Name: "holdfast_volume_scrub_pending", Kind: "gauge", Labels: vol, Help: "1 while a scrub is to be done or under way."},
		{Name: "holdfast_volume_scrub_blocks", Kind: "gauge", Labels: vol, Help: "Blocks of 64 KiB compared by the newest scrub."},
		{Name: "holdfast_volume_scrub_mismatches", Kind: "gauge", Labels: vol, Help: "Damaged copies of blocks that it found."},
		{Name: "holdfast_volume_scrub_healed", Kind: "gauge", Labels: vol, Help: "Of these, repaired."},
		{Name: "holdfast_volume_scrub_unhealed", Kind: "gauge", Labels: vol, Help: "Blocks that differ between replicas and could not be healed: no majority says which copy is right, or a disk does not keep what is written."},

		{Name: callSeconds, Kind: "histogram", Labels: []string{"call"}, Help: "Time that calls to the metadata store took.", pushed: true},
		{Name: callErrors, Kind: "counter", Labels: []string{"call", "kind"}, Help: "Calls to the metadata store that failed, by kind of error; busy and notfound are part of normal work.", pushed: true},
	}
}

func helpOf(name string) string {
	for _, m := range Metrics() {
		if m.Name == name {
			return m.Help
		}
	}
	return ""
}

// Markdown is the table as docs/metrics.md has it.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, m := range Metrics() {
		labels := strings.Join(m.Labels, ", ")
		if labels == "" {
			labels = "none"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Kind, labels, m.Help)
	}
	return b.String()
}
