package ingest

import (
	"testing"
	"testing/synctest"
	"time"

	"wardlink/audit"
)

// TestRefusalsOfOneGatewayAreBounded: a gateway that breaks the profile with each connection costs the log a bounded number of events.
func TestRefusalsOfOneGatewayAreBounded(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		time.Sleep(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute)))
		for range refusedSingly + 20 {
			c := b.open("gw-1", 10*time.Hour)
			c.send([]byte{0xc0, 0})
			c.expectEnd()
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		var counted uint64
		for _, ev := range b.journal.events(audit.RefusedPeers) {
			counted += ev.Count
		}
		if n := len(b.journal.events(audit.Refused)); n != refusedSingly || counted != 20 {
			t.Errorf("%d refusals have an event, %d are counted", n, counted)
		}
	})
}
