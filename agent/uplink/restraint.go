package uplink

import (
	"time"

	"wardlink/telemetry"
)

// restraint is for a server that refuses a lane's batches one after the other, as where a gateway's profile leaves the lane out: each refusal
// ends a connection, and each connection would begin with the next of them. Such a lane rests, longer each time, and the others flow.
// What rests stays in the buffer. A batch of the lane that is acknowledged ends it.
type restraint [telemetry.LaneCount]struct {
	refused int // in a row
	until   time.Time
}

// maxRow is how many refusals in a row are taken for what single batches deserve.
const maxRow = 3

// refusal notes one.
func (r *restraint) refusal(lane telemetry.Lane, t timing, now time.Time) {
	one, most := &r[lane], t.most
	if lane == telemetry.LaneAlarm {
		most = t.urgent
	}
	if one.refused++; one.refused > maxRow {
		one.until = now.Add(min(t.least<<min(one.refused-maxRow, 20), most))
	}
}

// now is which lanes rest; bit n stands for lane n.
func (r *restraint) now(at time.Time) (lanes uint8) {
	for lane := range r {
		if at.Before(r[lane].until) {
			lanes |= 1 << lane
		}
	}
	return lanes
}
