package agent

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"wardlink/buffer"
)

func TestMeasureBuffer(t *testing.T) {
	dir := t.TempDir()
	m, err := MeasureBuffer(t.Context(), Measurement{Dir: dir, Count: 300, Size: 20_000})
	if err != nil || m.Commits != 300 || m.Found != 300 || m.Bytes != 6_000_000 || m.Files < 6_000_000 || len(m.Problems) > 0 || m.Median > m.P99 || m.P99 > m.Longest {
		t.Errorf("%+v, %v", m, err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if m, err := MeasureBuffer(over, Measurement{Dir: dir, Time: time.Minute, Size: 64}); err != nil || m.Commits != 0 || len(m.Problems) > 0 {
		t.Errorf("ended at once: %+v, %v", m, err)
	}
	for name, bad := range map[string]Measurement{
		"no bound":     {Dir: dir, Size: 100},
		"too small":    {Dir: dir, Count: 1, Size: 63},
		"too large":    {Dir: dir, Count: 1, Size: 1 << 30},
		"no directory": {Dir: dir + "/none", Count: 1, Size: 100},
		"negative":     {Dir: dir, Count: -1, Time: time.Second, Size: 100},
	} {
		if _, err := MeasureBuffer(t.Context(), bad); err == nil {
			t.Errorf("%s was measured", name)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A batch that the disk gave back otherwise is told.
func TestMeasuredCheck(t *testing.T) {
	c := buffer.Config{Dir: t.TempDir(), Lanes: laneNames(), Order: laneOrder(), Cap: minBuffer, Verify: checkMeasured}
	if err := buffer.Create(c); err != nil {
		t.Fatal(err)
	}
	b, err := buffer.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	var out Measured
	if err := out.fill(t.Context(), b, Measurement{Count: 3, Size: 500}); err != nil {
		t.Fatal(err)
	}
	if err := b.Append([]buffer.Item{{ID: buffer.ID{Lane: 1}, Frame: make([]byte, 500), Record: []byte{1}}}); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	out.Commits++
	if err := out.check(c.Dir); err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(out.Problems, "; "); !strings.Contains(all, "its hash is another one") || !strings.Contains(all, "4 batches were kept and 3 are there") {
		t.Error(all)
	}
}
