package agent

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wardlink/telemetry"
)

// clock reads the gateway's two clocks as they are. Neither decides anything about order; what they are worth, the timekeeper knows.
type clock struct {
	boot [16]byte         // the kernel's boot id
	wall func() time.Time // nil: the system's
}

// newClock reads the boot id; times of one boot are comparable by their monotonic part.
func newClock() (clock, error) {
	const path = "/proc/sys/kernel/random/boot_id"
	text, err := os.ReadFile(path)
	if err != nil {
		return clock{}, fmt.Errorf("boot id: %w", err)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(raw) != 16 {
		return clock{}, fmt.Errorf("boot id: %s does not hold a UUID", path)
	}
	var c clock
	copy(c.boot[:], raw)
	return c, nil
}

// now is the wall clock.
func (c clock) now() time.Time {
	if c.wall != nil {
		return c.wall()
	}
	return time.Now()
}

// mono is the time since the kernel booted. CLOCK_BOOTTIME goes on while the gateway sleeps, unlike CLOCK_MONOTONIC.
func (clock) mono() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // every kernel since 2.6.39 has it; zero is told apart from any real reading
	}
	return time.Duration(ts.Nano())
}

// stamp is the present instant by both clocks. A wall clock that no stamp can hold is held at the nearest end: a message is not refused
// for the date.
func (c clock) stamp() telemetry.Stamp {
	return telemetry.Stamp{Wall: clampInstant(c.now().UnixMilli()), Mono: c.mono().Milliseconds()}
}
