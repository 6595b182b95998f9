package agent

import (
	"sync"
	"time"

	"wardlink/telemetry"
)

// Of how many messages of a source the time is compared with the hospital's, and how far a device's clock may be out until somebody is told.
const (
	deviceTimes    = 16
	deviceClockOff = time.Minute
)

// deviceClocks are what the latest messages of each source said of the time.
type deviceClocks struct {
	mu sync.Mutex
	of map[string]*deviceClock // by source
}

type deviceClock struct {
	ahead [deviceTimes]time.Duration
	count int
}

// note compares the latest time in a message with the time at which it came, where the hospital has told the time. Nothing is changed by it:
// what a device says of the time is kept.
func (d *deviceClocks) note(source string, m *telemetry.Message, now time.Time) {
	latest, any := int64(0), false
	for i := range m.Observations {
		if o := &m.Observations[i]; o.Marks&(telemetry.MarkTimeUnread|telemetry.MarkTimeUnsure) == 0 && (!any || o.At > latest) {
			latest, any = o.At, true
		}
	}
	if !any {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = map[string]*deviceClock{}
	}
	c := d.of[source]
	if c == nil {
		c = &deviceClock{}
		d.of[source] = c
	}
	c.ahead[c.count%deviceTimes] = time.UnixMilli(latest).Sub(now)
	c.count++
}

// ahead is how far a source's clock is ahead: by the message that says the most, since a device that was cut off sends old readings among
// the new, and none sends one before it is measured.
func (d *deviceClocks) ahead(source string) (most *time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.of[source]
	if c == nil {
		return nil
	}
	for _, a := range c.ahead[:min(c.count, deviceTimes)] {
		if most == nil || a > *most {
			most = &a
		}
	}
	return most
}

// noteDevice is note for a message that has just come.
func (a *Agent) noteDevice(source string, m *telemetry.Message) {
	if now, _, known := a.time.at(a.time.mono()); known {
		a.devices.note(source, m, now)
	}
}
