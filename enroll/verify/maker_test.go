package verify

import "testing"

func TestMakerName(t *testing.T) {
	for id, want := range map[string]string{
		"id:49465800": "IFX", "1229346816": "IFX", "id:53544D20": "STM", "id:4E544300": "NTC", "id:49424D00": "IBM", "1229081856": "IBM", "id:00001014": "IBM",
		"id:00000000": "id:00000000", "id:1B5B4A00": "id:1B5B4A00", "id:49205800": "id:49205800", "id:": "id:", "Infineon": "Infineon", "": "", "99999999999": "99999999999",
	} {
		if got := MakerName(id); got != want {
			t.Errorf("%q: %q; expected %q", id, got, want)
		}
	}
}
