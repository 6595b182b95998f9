package telemetry

import (
	"strings"
	"testing"
)

func TestTopics(t *testing.T) {
	for lane := range Lane(LaneCount) {
		gateway, got, key, err := ParseUp(UpTopic("gw-1", lane))
		if err != nil || gateway != "gw-1" || got != lane || key {
			t.Errorf("%s: %q %v %v %v", UpTopic("gw-1", lane), gateway, got, key, err)
		}
	}
	gateway, _, key, err := ParseUp(KeyTopic("gw-1"))
	if err != nil || gateway != "gw-1" || !key {
		t.Errorf("%s: %q %v %v", KeyTopic("gw-1"), gateway, key, err)
	}
	for _, doc := range docs {
		topic := DownTopic("gw-1", doc)
		gateway, got, err := ParseDown(topic)
		if err != nil || gateway != "gw-1" || got != doc {
			t.Errorf("%s: %q %q %v", topic, gateway, got, err)
		}
		if !strings.HasPrefix(topic, strings.TrimSuffix(DownFilter("gw-1"), "#")) {
			t.Errorf("%s is not under %s", topic, DownFilter("gw-1"))
		}
	}
}

var badTopics = []string{
	"", "wl", "wl/1/", "wl/1/gw-1/up", "wl/1/gw-1/up/", "wl/1//up/vitals", "wl/2/gw-1/up/vitals", "/wl/1/gw-1/up/vitals",
	"wl/1/gw-1/up/vitals/", "wl/1/gw-1/up/vitals/x", "wl/1/gw-1/up/Vitals", "wl/1/GW-1/up/vitals", "wl/1/-gw/up/vitals",
	"wl/1/gw-1/up/lane(4)", "wl/1/+/up/vitals", "wl/1/gw-1/up/#", "wl/1/gw-1/down/#", "wl/1/gw-1/down/vitals", "wl/1/gw-1/UP/vitals",
	"wl/1/gw-1\n/up/vitals", "wl/1/gw-1/up/vitals\x00", "$SYS/x", "wl/1/" + strings.Repeat("a", 64) + "/up/vitals", strings.Repeat("wl/1/", 1000),
}

func TestParseRefusesOtherTopics(t *testing.T) {
	for _, topic := range append(badTopics, DownTopic("gw-1", DocConfig)) {
		if _, _, _, err := ParseUp(topic); err == nil {
			t.Errorf("up: %.80q accepted", topic)
		} else if len(err.Error()) > 3*maxTopic+200 {
			t.Errorf("up: %.80q: the error quotes too much", topic)
		}
	}
	for _, topic := range append(badTopics, UpTopic("gw-1", LaneVitals), KeyTopic("gw-1")) {
		if _, _, err := ParseDown(topic); err == nil {
			t.Errorf("down: %.80q accepted", topic)
		}
	}
}

func TestParseLane(t *testing.T) {
	for lane := range Lane(LaneCount) {
		if got, err := ParseLane(lane.String()); err != nil || got != lane {
			t.Errorf("%s: %v %v", lane, got, err)
		}
	}
	if got := Lane(LaneCount).String(); got != "lane(4)" {
		t.Errorf("an unknown lane prints as %q", got)
	}
}

func TestParseEpoch(t *testing.T) {
	e := Epoch{0: 0xab, 15: 1}
	if got, err := ParseEpoch(e.String()); err != nil || got != e {
		t.Errorf("%s: %s %v", e, got, err)
	}
	for _, bad := range []string{"", "ab", e.String() + "00", strings.Replace(e.String(), "a", "g", 1)} {
		if _, err := ParseEpoch(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	id := BatchID{Epoch: e, Lane: LaneAlarm, Number: 7}
	if want := e.String() + "/alarm/7"; id.String() != want {
		t.Errorf("batch id prints as %s; expected %s", id, want)
	}
}
