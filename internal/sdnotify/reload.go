package sdnotify

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Reloading tells the manager that the service reads its configuration again, and Ready that it has: sd_notify(3). A manager that waits for
// the second (systemctl reload) gets both whatever came of it.
func Reloading() {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return // every kernel has it
	}
	tell(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", ts.Nano()/int64(time.Microsecond)))
}

// Ready ends what Reloading began.
func Ready() { tell("READY=1") }

// tell sends one state. A manager that cannot be told changes nothing.
func tell(state string) {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	conn, err := dial(addr)
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state))
}
