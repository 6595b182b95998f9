package agent

import (
	"time"

	"golang.org/x/sys/unix"
)

// Disk is the file system under the state directory, in bytes.
type Disk struct {
	Free     uint64 `json:"free"` // what a program without privileges may use
	Total    uint64 `json:"total"`
	Inodes   uint64 `json:"inodes"`              // that are free; files cannot be made without one
	NoInodes bool   `json:"no_inodes,omitempty"` // the file system does not count them
	ReadOnly bool   `json:"read_only"`
}

// DiskAt asks the file system that holds path.
func DiskAt(path string) (Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Disk{}, err
	}
	unit := uint64(st.Bsize)
	return Disk{
		Free: st.Bavail * unit, Total: st.Blocks * unit, Inodes: st.Ffree, NoInodes: st.Files == 0, ReadOnly: st.Flags&unix.ST_RDONLY != 0,
	}, nil
}

// KernelClock is what the kernel says of its clock.
type KernelClock struct {
	Now          time.Time     `json:"now"`
	Synchronised bool          `json:"synchronised"` // something, most often NTP, keeps it
	MaxError     time.Duration `json:"max_error_ns"` // the kernel's bound of its error; meaningful while Synchronised
}

// ReadKernelClock asks adjtimex(2), which every user may read.
func ReadKernelClock() KernelClock {
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	const stateError = 5 // TIME_ERROR: nothing keeps the clock
	return KernelClock{
		Now: time.Now(), Synchronised: err == nil && state != stateError && tx.Status&unix.STA_UNSYNC == 0,
		MaxError: time.Duration(tx.Maxerror) * time.Microsecond,
	}
}
