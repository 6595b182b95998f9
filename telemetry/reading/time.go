package reading

import "time"

// OffsetOf is how many seconds east of UTC a zone is at a local time, given as the Unix seconds it would be in UTC. unsure: the zone has that local time twice, of which
// the earlier is taken, or never, which is read as if the clocks had not been set yet. A zone's clocks are set at most once within the two days around it.
func OffsetOf(local int64, zone *time.Location) (east int64, unsure bool) {
	before, after := eastAt(local-86400, zone), eastAt(local+86400, zone)
	if before == after {
		return before, false
	}
	first, second := eastAt(local-before, zone) == before, eastAt(local-after, zone) == after
	switch {
	case first == second: // twice, or never
		return before, true
	case first:
		return before, false
	}
	return after, false
}

// eastAt is the zone's offset at an instant.
func eastAt(unix int64, zone *time.Location) int64 {
	_, offset := time.Unix(unix, 0).In(zone).Zone()
	return int64(offset)
}
