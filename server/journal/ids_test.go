package journal

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
)

// TestIDsAcrossFastRestarts opens the journal with a clock that goes back.
func TestIDsAcrossFastRestarts(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	c.Now = func() time.Time { return now }
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	seen := map[audit.EventID]bool{}
	for range 4 {
		j, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					id := j.NextID()
					mu.Lock()
					if seen[id] {
						t.Errorf("id %s was given twice", id)
					}
					seen[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		now = now.Add(-time.Hour)
	}
}
