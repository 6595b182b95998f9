package client_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"wardlink/server/api/client"
)

// TestLastUse: what nobody notes is null, and is not what was never used.
func TestLastUse(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for want, use := range map[string]client.Use{`"last_used":null`: {Untracked: true}, "": {}, `"last_used":"2026-01-02T03:04:05Z"`: {Time: at}} {
		data, err := json.Marshal(client.Identity{Used: use})
		if err != nil || !strings.Contains(string(data), want) || strings.Contains(string(data), "last_used") != (want != "") {
			t.Errorf("%+v: %s, %v", use, data, err)
		}
		var back client.Identity
		if err := json.Unmarshal(data, &back); err != nil || back.Used != use {
			t.Errorf("%s: %+v, %v", data, back.Used, err)
		}
	}
}
