package demo

import (
	"encoding/json"
	"testing"
)

// TestAcknowledged: what the hospital is said to have must be in the log, so it may only be what was published.
func TestAcknowledged(t *testing.T) {
	const text = `{"buffer":{"lanes":[{"name":"alarm","stored":1,"waiting":1},{"name":"vitals","stored":10,"waiting":3},
		{"name":"waveform","stored":20,"waiting":0},{"name":"self","stored":9,"waiting":1}]}}`
	var s agentStatus
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	if s.acknowledged() != 27 || s.waiting() != 5 {
		t.Errorf("%d acknowledged, %d waiting; expected 27 and 5", s.acknowledged(), s.waiting())
	}
}
