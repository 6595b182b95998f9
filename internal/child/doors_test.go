package child

import "testing"

// TestNoDoorIsGivenTwice: two programs on one port would be nobody's fault but ours.
func TestNoDoorIsGivenTwice(t *testing.T) {
	var d Doors
	seen := make(map[string]bool)
	for range 500 {
		addr, err := d.Free()
		if err != nil || seen[addr] {
			t.Fatalf("%s, %v", addr, err)
		}
		seen[addr] = true
	}
}
