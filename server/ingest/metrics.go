package ingest

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"wardlink/telemetry"
)

// metrics are the server's counters. Labels come from constants only, so that no peer can make series; where they cannot, their number is
// bounded.
type metrics struct {
	sessions     prometheus.GaugeFunc
	waiting      prometheus.GaugeFunc
	opened       prometheus.Counter
	closed       *prometheus.CounterVec
	publishes    [telemetry.LaneCount]prometheus.Counter
	bytes        [telemetry.LaneCount]prometheus.Counter
	publishVec   *prometheus.CounterVec
	bytesVec     *prometheus.CounterVec
	sealings     prometheus.Counter
	acknowledged prometheus.Counter
	failed       prometheus.Counter
	refusals     *prometheus.CounterVec
	unproven     prometheus.Counter
	commit       prometheus.Histogram
	paced        prometheus.Counter
	allotted     prometheus.Counter
	queue        *queueMetric
	agents       *agentMetric
}

func newMetrics(s *Server) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "wardlink", Subsystem: "ingest", Name: name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(
			prometheus.CounterOpts{Namespace: "wardlink", Subsystem: "ingest", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, value func() int) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "wardlink", Subsystem: "ingest", Name: name, Help: help},
			func() float64 { s.mu.Lock(); defer s.mu.Unlock(); return float64(value()) })
	}
	m := &metrics{
		sessions:     gauge("sessions", "Sessions of gateways.", func() int { return len(s.sessions) }),
		waiting:      gauge("connections_waiting", "Connections whose CONNECT has not come yet.", func() int { return len(s.waiting) }),
		opened:       counter("sessions_opened_total", "Sessions admitted and journaled."),
		closed:       vec("sessions_closed_total", "Sessions ended.", "reason"),
		publishVec:   vec("publishes_total", "Batches submitted to the journal.", "lane"),
		bytesVec:     vec("publish_bytes_total", "Bytes of frames submitted to the journal.", "lane"),
		sealings:     counter("sealing_records_total", "Sealing records submitted to the journal."),
		acknowledged: counter("pubacks_total", "Publishes acknowledged after their commit."),
		failed:       counter("commits_failed_total", "Publishes whose commit failed; they were not acknowledged."),
		refusals:     vec("refusals_total", "Refusals of proven identities.", "reason"),
		unproven:     counter("refusals_unproven_total", "Refusals before an identity was proven."),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "wardlink", Subsystem: "ingest", Name: "commit_seconds",
			Help:    "From a publish's place in the window to its commit.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}),
	}
	m.allotted = counter("allotted_seconds_total", "Time that publishes over the rate of their gateway's profile were left unread.")
	m.paced = counter("paced_seconds_total", "Time that publishes over the rate of their gateway or address were left unread.")
	m.queue = newQueueMetric(s)
	m.agents = &agentMetric{s, prometheus.NewDesc("wardlink_ingest_agents", "Sessions by the agent's release, as it says, and protocol version.", []string{"agent", "protocol"}, nil)}
	for lane := range m.publishes {
		name := telemetry.Lane(lane).String()
		m.publishes[lane], m.bytes[lane] = m.publishVec.WithLabelValues(name), m.bytesVec.WithLabelValues(name)
	}
	return m
}

func (m *metrics) received(lane telemetry.Lane, size int) {
	m.publishes[lane].Inc()
	m.bytes[lane].Add(float64(size))
}

func (m *metrics) refused(reason string) { m.refusals.WithLabelValues(reason).Inc() }

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{
		m.sessions, m.waiting, m.opened, m.closed, m.publishVec, m.bytesVec, m.sealings, m.acknowledged, m.failed, m.refusals,
		m.unproven, m.commit, m.paced, m.allotted, m.queue, m.agents,
	}
}

func (m *metrics) describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

func (m *metrics) collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

// queueMetric is the queue before the journal.
type queueMetric struct {
	s                              *Server
	waiting, inside, delay, blocks *prometheus.Desc
	overload                       *prometheus.Desc
}

func newQueueMetric(s *Server) *queueMetric {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("wardlink_ingest_"+name, help, nil, nil)
	}
	return &queueMetric{
		s: s, waiting: desc("queue_bytes", "Bytes of publishes that wait for their turn at the journal."),
		inside:   desc("journal_bytes", "Bytes of publishes that the journal has and has not committed."),
		delay:    desc("queue_delay_seconds", "How long the publish waited that had its turn last."),
		blocks:   desc("queue_full_total", "How often a session was not read on because the queue was full."),
		overload: desc("overloaded", "1 while CONNECTs are turned away because publishes wait too long."),
	}
}

func (q *queueMetric) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{q.waiting, q.inside, q.delay, q.blocks, q.overload} {
		ch <- d
	}
}

func (q *queueMetric) Collect(ch chan<- prometheus.Metric) {
	l := q.s.queue.load()
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	gauge(q.waiting, float64(l.waiting))
	gauge(q.inside, float64(l.inside))
	gauge(q.delay, l.delay.Seconds())
	over := 0.0
	if q.s.overloaded.Load() {
		over = 1
	}
	gauge(q.overload, over)
	ch <- prometheus.MustNewConstMetric(q.blocks, prometheus.CounterValue, float64(l.waits))
}

// agentMetric counts live sessions by agent. Gateways name their builds, so no more than maxAgents are told apart at a time.
type agentMetric struct {
	s    *Server
	desc *prometheus.Desc
}

const maxAgents = 32

func (a *agentMetric) Describe(ch chan<- *prometheus.Desc) { ch <- a.desc }

func (a *agentMetric) Collect(ch chan<- prometheus.Metric) {
	type agent struct{ build, protocol string }
	counts := map[agent]int{}
	for _, c := range a.s.Sessions() {
		key := agent{c.Agent, strconv.Itoa(int(c.Protocol))}
		if _, ok := counts[key]; !ok && len(counts) >= maxAgents {
			key = agent{reasonOverflow, ""}
		}
		counts[key]++
	}
	for key, n := range counts {
		ch <- prometheus.MustNewConstMetric(a.desc, prometheus.GaugeValue, float64(n), key.build, key.protocol)
	}
}
