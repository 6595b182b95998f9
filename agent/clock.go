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

// clock reads the gateway's two clocks. Neither decides anything about order.
type clock struct {
	boot [16]byte // the kernel's boot id
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

// stamp is the present instant. CLOCK_BOOTTIME goes on while the gateway sleeps, unlike CLOCK_MONOTONIC.
func (clock) stamp() telemetry.Stamp {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		ts = unix.Timespec{} // every kernel since 2.6.39 has it; zero is told apart from any real reading
	}
	return telemetry.Stamp{Wall: time.Now().UnixMilli(), Mono: ts.Nano() / int64(time.Millisecond)}
}
