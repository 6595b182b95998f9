package telemetry

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The tags of the Go types and the keys of wire.cddl are the same, and optional where they are optional.
func TestTagsFollowTheCDDL(t *testing.T) {
	text, err := os.ReadFile("wire.cddl")
	if err != nil {
		t.Fatal(err)
	}
	for rule, typ := range map[string]reflect.Type{
		"batch":     reflect.TypeFor[wireBatch](),
		"context":   reflect.TypeFor[wireContext](),
		"messages":  reflect.TypeFor[wireMessages](),
		"times":     reflect.TypeFor[wireTimes](),
		"series":    reflect.TypeFor[wireSeries](),
		"waveforms": reflect.TypeFor[wireWaveforms](),
		"extra":     reflect.TypeFor[wireExtra](),
		"problem":   reflect.TypeFor[wireProblem](),
		"refusal":   reflect.TypeFor[wireRefusal](),
		"hello":     reflect.TypeFor[wireWelcome](),
		"resend":    reflect.TypeFor[wireResend](),
		"hint":      reflect.TypeFor[wireHint](),
		"held":      reflect.TypeFor[wireHeld](),

		"report-batch": reflect.TypeFor[wireReportBatch](),
		"report":       reflect.TypeFor[wireReport](),
		"source":       reflect.TypeFor[wireSource](),
		"lane":         reflect.TypeFor[wireLane](),
		"spans":        reflect.TypeFor[wireSpans](),
		"identity":     reflect.TypeFor[wireIdentity](),
		"uplink":       reflect.TypeFor[wireUplink](),
		"buffer":       reflect.TypeFor[wireBuffer](),
		"clock":        reflect.TypeFor[wireClock](),
		"config":       reflect.TypeFor[wireConfig](),
		"step":         reflect.TypeFor[wireStep](),
	} {
		var want []string
		for i := range typ.NumField() {
			tag := strings.Split(typ.Field(i).Tag.Get("cbor"), ",")
			want = append(want, fmt.Sprintf("%s optional=%v", tag[0], slices.Contains(tag, "omitempty")))
		}
		body := regexp.MustCompile(`(?ms)^` + rule + ` = \{[^\n]*\n(.*?)^\}`).FindSubmatch(text)
		if body == nil {
			t.Errorf("wire.cddl has no %s", rule)
			continue
		}
		var got []string
		for _, m := range regexp.MustCompile(`(?m)^  (\? )?([0-9]+): `).FindAllStringSubmatch(string(body[1]), -1) {
			got = append(got, fmt.Sprintf("%s optional=%v", m[2], m[1] != ""))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: wire.cddl has %v, the Go type %v", rule, got, want)
		}
	}
}
