package uplink

import (
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wardlink/buffer"
	"wardlink/telemetry"
)

// illBuffer has a file that the disk does not give up: once all else is taken, Take fails.
type illBuffer struct{ *strictBuffer }

func (b illBuffer) Take(most int) ([]buffer.Batch, error) {
	out, err := b.strictBuffer.Take(most)
	if len(out) == 0 {
		err = syscall.EIO
	}
	return out, err
}

// A file that cannot be read costs no connection: what comes goes out at once, and the file is asked for again.
func TestAFileThatCannotBeReadEndsNoConnection(t *testing.T) {
	twoServers(t, func(far net.Conn) error {
		go acknowledgeFor(far, 100*time.Hour)
		return nil
	}, func(a *agent, _ *atomic.Int64) {
		p := a.ward.period()
		for range 30 {
			time.Sleep(time.Minute)
			before := a.buf.count(acked)
			a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 1, 10)...)
			time.Sleep(time.Second)
			if n := a.buf.count(acked); n != before+1 {
				t.Errorf("%d of %d batches are acknowledged after a second", n-before, 1)
			}
		}
		if s := a.Status(); !s.Connected || s.Connects != 1 || s.LastError == "" {
			t.Errorf("%+v", s)
		}
	}, func(a *agent) { a.cfg.Buffer = illBuffer{a.buf} })
}
