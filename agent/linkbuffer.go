package agent

import (
	"wardlink/agent/uplink"
	"wardlink/buffer"
	"wardlink/telemetry"
)

// linkBuffer is the buffer as the uplink sees it.
type linkBuffer struct {
	*buffer.Buffer
	reports *reporter
}

// The uplink asks for what is urgent, and for what was refused, of a buffer that can say.
var (
	_ uplink.Urgency = linkBuffer{}
	_ uplink.Parked  = linkBuffer{}
)

// Urgent implements uplink.Urgency. A parked alarm was refused and does not hurry anybody.
func (b linkBuffer) Urgent() bool {
	alarms := b.Stats().Lanes[telemetry.LaneAlarm]
	return alarms.Waiting > alarms.Parked
}

// Ack tells the reports' part of it, too.
func (b linkBuffer) Ack(ids ...buffer.ID) {
	b.Buffer.Ack(ids...)
	b.reports.arrived(ids)
}
