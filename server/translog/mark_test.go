package translog

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"wardlink/internal/durable"
)

// TestMarkOfANewerProgram: an older writer refuses the log, and says that it is too old, not that the log is unsound.
func TestMarkOfANewerProgram(t *testing.T) {
	dir, j, _, _ := longLog(t)
	path := filepath.Join(dir, stateDir, markName)
	pair, data, err := durable.OpenAB(path, maxMark)
	if err != nil || data == nil {
		t.Fatal(err)
	}
	var m mark
	if err := cbor.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	m.Version = markVersion + 1
	if data, err = cbor.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := pair.Store(data); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testConfig(t, dir, j)); !errors.Is(err, durable.ErrNewer) || errors.Is(err, ErrUnsound) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
	if _, after, err := durable.OpenAB(path, maxMark); err != nil || string(after) != string(data) {
		t.Errorf("the mark was changed: %v", err)
	}
}
