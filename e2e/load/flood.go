package load

import (
	"fmt"
	"time"
)

// Tally is what came of one gateway's publishes.
type Tally struct {
	Latency Histogram // to the PUBACK, of those that were published within the measured time
	Counted int64     // acknowledged within the measured time
	Acked   uint64    // acknowledged in all: numbers 0 to Acked-1
}

// Window is when is measured. What is published before From is warm-up; at Until publishing ends and what is in flight is waited for.
type Window struct {
	From, Until time.Time
	InFlight    int // publishes without PUBACK
	// Each is told of every acknowledgement, from one goroutine for each gateway; nil: nobody is.
	Each func(sent, now time.Time)
}

// drain is how long is waited for the last acknowledgements.
const drain = 30 * time.Second

// Flood publishes as fast as the server acknowledges, with w.InFlight in flight. What may be sent at once goes in one write, as TCP
// would make of it anyway.
func (c *Conn) Flood(b *Batches, w Window) (t *Tally, err error) {
	t = &Tally{}
	sent := make([]time.Time, w.InFlight+1)
	free := make([]uint16, w.InFlight)
	for i := range free {
		free[i] = uint16(i + 1)
	}
	buf := make([]byte, 0, w.InFlight*(b.Size+128))
	_ = c.conn.SetDeadline(w.Until.Add(drain))
	for {
		now := time.Now()
		if now.Before(w.Until) && len(free) > 0 {
			buf = buf[:0]
			for _, id := range free {
				if buf, err = b.appendTo(buf, id, now); err != nil {
					return t, err
				}
				sent[id] = now
			}
			free = free[:0]
			if _, err := c.conn.Write(buf); err != nil {
				return t, err
			}
		}
		if len(free) == w.InFlight {
			return t, nil
		}
		if free, err = c.collect(t, w, sent, free); err != nil {
			return t, fmt.Errorf("%s with %d in flight: %w", c.Gateway, w.InFlight-len(free), err)
		}
	}
}

// collect waits for one acknowledgement and takes those that came with it.
func (c *Conn) collect(t *Tally, w Window, sent []time.Time, free []uint16) ([]uint16, error) {
	for first := true; first || c.in.Buffered() >= 4; first = false {
		id, err := c.acknowledged()
		if err != nil {
			return free, err
		}
		if int(id) >= len(sent) || sent[id].IsZero() {
			return free, fmt.Errorf("PUBACK of packet %d, which is not in flight", id)
		}
		t.take(w, sent[id], time.Now())
		sent[id] = time.Time{}
		free = append(free, id)
	}
	return free, nil
}

// take counts an acknowledgement.
func (t *Tally) take(w Window, sent, now time.Time) {
	t.Acked++
	if w.Each != nil {
		w.Each(sent, now)
	}
	if !now.Before(w.From) && now.Before(w.Until) {
		t.Counted++
	}
	if !sent.Before(w.From) && sent.Before(w.Until) {
		t.Latency.Add(now.Sub(sent))
	}
}

// Paced publishes one batch each interval from a random moment within the first on, however fast the server is; at most w.InFlight wait.
// A batch's latency counts from when it was due, so that what a slow server keeps from being sent counts as well.
func (c *Conn) Paced(b *Batches, w Window, first time.Time, interval time.Duration) (*Tally, error) {
	type due struct {
		id uint16
		at time.Time
	}
	free := make(chan uint16, w.InFlight)
	for i := range w.InFlight {
		free <- uint16(i + 1)
	}
	flying := make(chan due, w.InFlight) // written in order of sending, before the packet itself
	failed, stop := make(chan error, 1), make(chan struct{})
	defer close(stop)
	_ = c.conn.SetDeadline(w.Until.Add(drain))
	go func() {
		failed <- func() error {
			var buf []byte
			var err error
			defer close(flying)
			for at := first; at.Before(w.Until); {
				time.Sleep(time.Until(at))
				now := time.Now()
				var id uint16
				select {
				case id = <-free:
				case <-stop:
					return nil
				}
				// What else is due by now goes in the same write.
				for buf = buf[:0]; ; {
					if buf, err = b.appendTo(buf, id, now); err != nil {
						return err
					}
					flying <- due{id, at}
					at = at.Add(interval)
					if at.After(now) || !at.Before(w.Until) || len(free) == 0 {
						break
					}
					id = <-free // this goroutine alone takes any
				}
				if _, err := c.conn.Write(buf); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	t := &Tally{}
	at := make([]time.Time, w.InFlight+1)
	for d := range flying {
		at[d.id] = d.at
		for pending := 1; pending > 0; {
			id, err := c.acknowledged()
			if err != nil {
				return t, fmt.Errorf("%s: %w", c.Gateway, err)
			}
			for int(id) < len(at) && at[id].IsZero() { // acknowledged out of order: it was sent, so it is in flying
				d, ok := <-flying
				if !ok {
					break
				}
				at[d.id] = d.at
				pending++
			}
			if int(id) >= len(at) || at[id].IsZero() {
				return t, fmt.Errorf("%s: PUBACK of packet %d, which is not in flight", c.Gateway, id)
			}
			t.take(w, at[id], time.Now())
			at[id] = time.Time{}
			pending--
			free <- id
		}
	}
	return t, <-failed
}
