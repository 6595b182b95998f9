package alerts

import "github.com/prometheus/client_golang/prometheus"

// Labels come from the closed list of types and from the configuration, so that nothing outside makes series.
var (
	openDesc    = prometheus.NewDesc("wardlink_alerts_open", "Open alerts.", []string{"type", "severity"}, nil)
	upDesc      = prometheus.NewDesc("wardlink_alert_target_up", "1 unless the last attempt at the target failed.", []string{"target"}, nil)
	waitingDesc = prometheus.NewDesc("wardlink_alert_target_waiting", "Messages that wait for the target.", []string{"target"}, nil)
	sentDesc    = prometheus.NewDesc("wardlink_alert_target_delivered_total", "Messages that the target took.", []string{"target"}, nil)
	lostDesc    = prometheus.NewDesc("wardlink_alert_target_undeliverable_total", "Messages given up.", []string{"target"}, nil)
)

// Describe makes Alerts a prometheus.Collector.
func (a *Alerts) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{openDesc, upDesc, waitingDesc, sentDesc, lostDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (a *Alerts) Collect(ch chan<- prometheus.Metric) {
	type series struct {
		typ      Type
		severity Severity
	}
	open := make(map[series]int)
	for _, al := range a.openAlerts() {
		open[series{al.Type, al.Severity}]++
	}
	for s, n := range open {
		ch <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(n), string(s.typ), s.severity.String())
	}
	for _, t := range a.Targets() {
		up := 1.0
		if !t.Failing.IsZero() {
			up = 0
		}
		ch <- prometheus.MustNewConstMetric(upDesc, prometheus.GaugeValue, up, t.Name)
		ch <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, float64(t.Waiting), t.Name)
		ch <- prometheus.MustNewConstMetric(sentDesc, prometheus.CounterValue, float64(t.Sent), t.Name)
		ch <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, float64(t.Lost), t.Name)
	}
}
