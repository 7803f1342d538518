// Package metrics shows what a node measures to Prometheus.
//
// It promises that every metric it exports is in the table of Metrics, from which
// docs/metrics.md is made, with names and units by Prometheus' conventions, and
// that a scrape takes each volume's lock for a moment only: counters and histograms
// are kept by the primaries under the lock that they hold anyway, and read when
// they are asked for. Counters of a volume begin anew when it is attached again. It
// keeps no history and decides nothing.
//
// It owns no goroutines but those that a scrape starts and ends.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/agent"
)

// Config is what the exporter needs.
type Config struct {
	Node    holdfast.NodeID
	Release string
	// Measures takes stock of the node; false while it is not there yet.
	Measures func() (agent.Measures, bool)
	// Kept says whether the daemon has a keeper; nil: it has none.
	Kept func() bool
}

// Exporter answers scrapes.
type Exporter struct {
	cfg   Config
	reg   *prometheus.Registry
	descs map[string]*prometheus.Desc
	calls *prometheus.HistogramVec
	fails *prometheus.CounterVec
}

// New makes an exporter.
func New(cfg Config) *Exporter {
	e := &Exporter{cfg: cfg, reg: prometheus.NewRegistry(), descs: map[string]*prometheus.Desc{}}
	for _, m := range Metrics() {
		if !m.pushed {
			e.descs[m.Name] = prometheus.NewDesc(m.Name, m.Help, m.Labels, nil)
		}
	}
	e.calls = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: callSeconds, Help: helpOf(callSeconds), Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15)}, []string{"call"})
	e.fails = prometheus.NewCounterVec(prometheus.CounterOpts{Name: callErrors, Help: helpOf(callErrors)}, []string{"call", "kind"})
	e.reg.MustRegister(e.calls, e.fails, collector{e}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return e
}

// Handler answers scrapes, two at a time.
func (e *Exporter) Handler() http.Handler {
	return promhttp.HandlerFor(e.reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 10 * time.Second, ErrorHandling: promhttp.ContinueOnError})
}

// Gatherer is for tests.
func (e *Exporter) Gatherer() prometheus.Gatherer { return e.reg }

// collector takes stock when it is asked.
type collector struct{ e *Exporter }

func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range Metrics() {
		if d := c.e.descs[m.Name]; d != nil {
			out <- d
		}
	}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	s := sink{e: c.e, out: out}
	s.gauge("holdfast_build_info", 1, string(c.e.cfg.Node), c.e.cfg.Release)
	s.gauge("holdfast_node_kept", one(c.e.cfg.Kept != nil && c.e.cfg.Kept()))
	m, ok := c.e.cfg.Measures()
	if !ok {
		return
	}
	s.gauge("holdfast_node_lease_held", one(m.LeaseHeld))
	kinds := map[holdfast.PrimaryKind]int{holdfast.ClientPrimary: 0, holdfast.MaintenancePrimary: 0}
	for _, v := range m.Volumes {
		kinds[v.Kind]++
		s.volume(v)
	}
	for k, n := range kinds {
		s.gauge("holdfast_node_volumes", float64(n), string(k))
	}
	for _, p := range m.Pools {
		s.pool(p)
	}
	s.waits(m)
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
