package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"wardlink/agent/source"
	"wardlink/telemetry"
)

// check says what is wrong with the configuration.
func (m MetricsConfig) check() error {
	switch {
	case m.Socket == "" && m.Group != "":
		return errors.New("group: it is of a socket; set metrics.socket too, such as /run/wardlink-agent/metrics.sock")
	case m.Socket == "":
		return nil
	}
	if err := (source.Socket{Path: m.Socket, Group: -1}).Check(); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	return nil
}

// serveMetrics answers GET /metrics, and nothing else, at a socket that a group may open.
func (a *Agent) serveMetrics(ctx context.Context) error {
	if a.cfg.Metrics.Socket == "" {
		return nil
	}
	return a.serveSocket(ctx, a.cfg.Metrics.Socket, a.cfg.Metrics.listen, toldMetrics)
}

// toldMetrics is the only request that the metrics socket answers.
const toldMetrics = "GET /metrics"

func (m MetricsConfig) listen() (net.Listener, error) {
	s := source.Socket{Path: m.Socket, Mode: 0o660, Group: -1}
	if m.Group != "" {
		gid, err := number("/etc/group", m.Group)
		if err != nil {
			return nil, fmt.Errorf("metrics.group: %w", err)
		}
		s.Group = int(gid)
	}
	return s.Open()
}

// exposition is a text in Prometheus' format 0.0.4, written by hand: its library would be a tenth of the agent.
type exposition struct{ bytes.Buffer }

// family begins a metric.
func (e *exposition) family(name, kind, help string) string {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	return name
}

// sample writes one value. labels is "" or what stands between the braces.
func (e *exposition) sample(name, labels string, value float64) {
	e.WriteString(name)
	if labels != "" {
		e.WriteString("{" + labels + "}")
	}
	e.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

// one is a family of one sample.
func (e *exposition) one(name, kind, help string, value float64) {
	e.sample(e.family(name, kind, help), "", value)
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// age is how long ago an instant was, in seconds; false for none.
func age(now, at time.Time) (float64, bool) { return max(0, now.Sub(at).Seconds()), !at.IsZero() }

const (
	counter = "counter"
	gauge   = "gauge"
)

// metrics is what the agent counts, for Prometheus. Labels are lanes and the configuration's names of sources: nothing of a patient.
func (s Status) metrics(now time.Time) []byte {
	var e exposition
	e.sample(e.family("wardlink_agent_build_info", gauge, "Which agent runs; always 1."), `version=`+strconv.Quote(s.Version), 1)
	e.one("wardlink_agent_uptime_seconds", gauge, "Time since the agent's start.", now.Sub(s.Started).Seconds())
	s.identityMetrics(&e, now)
	e.one("wardlink_agent_buffer_bytes", gauge, "Bytes of the buffer in use and reserved, delivered segments included.", float64(s.Buffer.Disk))
	e.one("wardlink_agent_buffer_cap_bytes", gauge, "Bytes that the buffer never exceeds.", float64(s.Buffer.Cap))
	e.one("wardlink_agent_buffer_damaged_files", gauge, "Files that were set aside for damage.", float64(len(s.Buffer.Damaged)))
	e.one("wardlink_agent_buffer_unread_files", gauge, "Files that the disk cannot read at present.", float64(len(s.Buffer.Unread)))
	e.one("wardlink_agent_disk_free_bytes", gauge, "Bytes free under the state directory.", float64(s.Disk.Free))
	e.one("wardlink_agent_messages_total", counter, "Messages that are durably buffered.", float64(s.Intake.Messages))
	e.one("wardlink_agent_failed_batches_total", counter, "Batches that could not be kept; their devices got no acknowledgement.", float64(s.Intake.Failed))
	s.laneMetrics(&e, now)
	e.one("wardlink_agent_uplink_connected", gauge, "1 while the hospital has admitted a session.", yes(s.Uplink.Connected))
	e.one("wardlink_agent_uplink_provisional", gauge, "1 while what the hospital acknowledges is kept, since the time is not trusted yet.", yes(s.Uplink.Provisional))
	e.one("wardlink_agent_uplink_since_seconds", gauge, "Time since the session began or ended.", now.Sub(s.Uplink.Since).Seconds())
	e.one("wardlink_agent_uplink_sessions_total", counter, "Sessions that the hospital has admitted.", float64(s.Uplink.Connects))
	e.one("wardlink_agent_uplink_in_flight", gauge, "Batches sent and not acknowledged yet.", float64(s.Uplink.InFlight))
	s.sourceMetrics(&e, now)
	s.clockMetrics(&e)
	return e.Bytes()
}

func (s Status) identityMetrics(e *exposition, now time.Time) {
	e.one("wardlink_agent_enrolled", gauge, "1 while the gateway has an identity and is not cut off.", yes(s.Gateway != "" && !s.Revoked))
	if s.NotAfter != nil {
		e.one("wardlink_agent_certificate_expiry_seconds", gauge, "Time until the certificate ends, by the hospital's time where it is known.", s.NotAfter.Sub(s.Present(now)).Seconds())
	}
}

func (s Status) laneMetrics(e *exposition, now time.Time) {
	each := func(name, kind, help string, value func(lane int) (float64, bool)) {
		e.family(name, kind, help)
		for lane := range s.Buffer.Lanes {
			if v, ok := value(lane); ok {
				e.sample(name, `lane="`+s.Buffer.Lanes[lane].Name+`"`, v)
			}
		}
	}
	each("wardlink_agent_waiting_batches", gauge, "Batches that wait for the hospital's acknowledgement.", func(l int) (float64, bool) {
		if l >= len(s.Queues) {
			return 0, false
		}
		return float64(s.Queues[l].Waiting), true
	})
	each("wardlink_agent_waiting_bytes", gauge, "Bytes of waiting and parked batches, about.", func(l int) (float64, bool) {
		if l >= len(s.Queues) {
			return 0, false
		}
		return float64(s.Queues[l].Bytes), true
	})
	each("wardlink_agent_oldest_waiting_age_seconds", gauge, "Age of the oldest batch that waits, by this machine's clock; absent while none does.", func(l int) (float64, bool) {
		if l >= len(s.Queues) || s.Queues[l].Oldest == nil {
			return 0, false
		}
		return age(now, *s.Queues[l].Oldest)
	})
	each("wardlink_agent_parked_batches", gauge, "Batches that the hospital refused; they are kept.", func(l int) (float64, bool) {
		return float64(s.Buffer.Lanes[l].Parked), true
	})
	each("wardlink_agent_lost_batches_total", counter, "Batches that did not verify, or were in files that were set aside.", func(l int) (float64, bool) {
		return float64(s.Buffer.Lanes[l].Lost), true
	})
	each("wardlink_agent_evicted_batches", gauge, "Batches that were deleted undelivered for the room of others, since the last day without any.", func(l int) (float64, bool) {
		return float64(s.Buffer.Lanes[l].Evicted), true
	})
	each("wardlink_agent_published_batches_total", counter, "Batches handed to the network, repetitions included.", func(l int) (float64, bool) {
		return float64(s.Uplink.Lanes[l].Published), l < telemetry.LaneCount
	})
	each("wardlink_agent_acknowledged_batches_total", counter, "Batches that the hospital has.", func(l int) (float64, bool) {
		return float64(s.Uplink.Lanes[l].Acknowledged), l < telemetry.LaneCount
	})
}

func (s Status) sourceMetrics(e *exposition, now time.Time) {
	ids := slices.Sorted(maps.Keys(s.Sources))
	for _, m := range []struct {
		name, kind, help string
		value            func(st source.Stats) (float64, bool)
	}{
		{"wardlink_agent_source_listening", gauge, "1 while devices can connect.", func(st source.Stats) (float64, bool) { return yes(st.Listening), true }},
		{"wardlink_agent_source_connections", gauge, "Connections that are open.", func(st source.Stats) (float64, bool) { return float64(st.Connections), true }},
		{"wardlink_agent_source_received_total", counter, "Whole messages.", func(st source.Stats) (float64, bool) { return float64(st.Received), true }},
		{"wardlink_agent_source_acknowledged_total", counter, "Messages whose acknowledgement was written.", func(st source.Stats) (float64, bool) { return float64(st.Acknowledged), true }},
		{"wardlink_agent_source_not_understood_total", counter, "Messages of which not all was understood; they travel on as they came.", func(st source.Stats) (float64, bool) { return float64(st.NotUnderstood), true }},
		{"wardlink_agent_source_refused_total", counter, "Messages that are none: not framed, over-long, without a header.", func(st source.Stats) (float64, bool) { return float64(st.Refused), true }},
		{"wardlink_agent_source_failed_total", counter, "Messages that could not be kept and got no acknowledgement.", func(st source.Stats) (float64, bool) { return float64(st.Failed), true }},
		{"wardlink_agent_source_unwelcome_total", counter, "Connections that were closed: from addresses that are not allowed, or beyond the limit.", func(st source.Stats) (float64, bool) { return float64(st.NotAllowed + st.OverLimit), true }},
		{"wardlink_agent_source_slowed_total", counter, "Messages after which the limits had the next one wait.", func(st source.Stats) (float64, bool) { return float64(st.Slowed), true }},
		{"wardlink_agent_source_bed_conflicts_total", counter, "Messages of devices that claim another bed than their connection's.", func(st source.Stats) (float64, bool) { return float64(st.BedConflicts), true }},
		{"wardlink_agent_source_tls_refused_total", counter, "TLS handshakes of devices that failed; absent without TLS.", func(st source.Stats) (float64, bool) {
			if st.TLS == nil {
				return 0, false
			}
			return float64(st.TLS.Refused), true
		}},
		{"wardlink_agent_source_last_message_age_seconds", gauge, "Time since the last whole message; absent before the first.", func(st source.Stats) (float64, bool) { return age(now, st.LastReceived) }},
		{"wardlink_agent_source_clock_ahead_seconds", gauge, "How far the device's clock is ahead of the hospital's time; absent while nobody knows.", func(st source.Stats) (float64, bool) {
			if st.Ahead == nil {
				return 0, false
			}
			return st.Ahead.Seconds(), true
		}},
	} {
		e.family(m.name, m.kind, m.help)
		for _, id := range ids {
			if v, ok := m.value(s.Sources[id]); ok {
				e.sample(m.name, `source="`+id+`"`, v)
			}
		}
	}
}

func (s Status) clockMetrics(e *exposition) {
	t := s.Time
	e.one("wardlink_agent_clock_trusted", gauge, "1 while the hospital has told the time in this boot.", yes(t.Trusted))
	if t.Offset != nil {
		e.one("wardlink_agent_clock_offset_seconds", gauge, "The hospital's time minus this machine's.", float64(*t.Offset)/1000)
	}
	e.one("wardlink_agent_clock_floor_timestamp_seconds", gauge, "The latest instant that is known to be past, Unix time.", float64(t.Floor.Unix()))
	e.one("wardlink_agent_clock_steps_total", counter, "How often this machine's clock was set by a second or more.", float64(t.Steps))
}
