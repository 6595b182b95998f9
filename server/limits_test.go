package server

import (
	"testing"
	"time"

	"wardlink/server/ingest"
)

// TestBlindSecondsHold: whatever is set, sight, one question and a poll fit into it, and a question has the second that a busy database may take.
func TestBlindSecondsHold(t *testing.T) {
	for seconds := 5; seconds <= blindSeconds; seconds++ {
		l := Limits{BlindSeconds: seconds}
		if err := l.Check(); err != nil {
			t.Fatal(err)
		}
		sight := l.ingest().Blind
		question := ingest.QuestionTime(sight)
		if question < time.Second || sight+question+500*time.Millisecond >= l.blind() || sight < l.blind()/2 {
			t.Errorf("%d s: %s of sight, %s for a question", seconds, sight, question)
		}
	}
}
