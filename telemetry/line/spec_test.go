package line

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"wardlink/telemetry"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// block is one fenced block of LINE.md.
type block struct{ kind, text string }

func blocks(t *testing.T) (out []block) {
	for _, m := range regexp.MustCompile("(?ms)^```([a-z ]+)\n(.*?)^```$").FindAllSubmatch(read(t, "LINE.md"), -1) {
		out = append(out, block{string(m[1]), string(m[2])})
	}
	return out
}

// Every message of LINE.md is read as it says, fits the schema, and has the answer that stands behind it.
func TestExamplesOfThePage(t *testing.T) {
	messages, answers, hexes := 0, 0, 0
	var answer []byte
	var first telemetry.Message
	schema := loadSchema(t)
	for _, b := range blocks(t) {
		switch b.kind {
		case "json", "json refused", "json alarm", "hex message":
			raw := []byte(strings.TrimSuffix(b.text, "\n"))
			if b.kind == "hex message" {
				raw = fromHex(t, b.text)
			}
			m, id, err := Understand(raw, Options{})
			lane, _ := LaneOf(&m)
			if answer = OK(id, IsCBOR(raw)); err != nil {
				answer = Refusal(id, err.(*RefusedError), IsCBOR(raw))
			}
			if (err != nil) != (b.kind == "json refused") || (len(m.Problems) > 0) != (b.kind == "json alarm") || err == nil && (lane == telemetry.LaneAlarm) != (b.kind == "json alarm") {
				t.Errorf("%s: %v, problems %v, lane %v", b.text, err, m.Problems, lane)
			}
			if fault := schema.check(raw); !IsCBOR(raw) && (fault == "") != (b.kind != "json refused") {
				t.Errorf("%s: schema: %q", b.text, fault)
			}
			if messages++; messages == 1 {
				first = m
			}
			if IsCBOR(raw) && (len(m.Observations) != 2 || m.Observations[1].Value != "97.5" || !slices.Equal(m.Observations, first.Observations) || m.Patient != first.Patient) {
				t.Errorf("CBOR: %+v, JSON: %+v", m, first)
			}
		case "answer":
			if answers++; string(answer) != b.text {
				t.Errorf("page: %sgiven: %s", b.text, answer)
			}
		case "hex answer":
			if hexes++; !bytes.Equal(answer, fromHex(t, b.text)) {
				t.Errorf("page: %s, given: %x", b.text, answer)
			}
		default:
			t.Errorf("block %q", b.kind)
		}
	}
	if messages < 6 || answers < 3 || hexes != 1 {
		t.Errorf("%d messages, %d answers, %d in hex", messages, answers, hexes)
	}
}

func fromHex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Page, schema, CDDL and code name the same keys, by the same numbers, in the same places.
func TestKeysAreTheSameEverywhere(t *testing.T) {
	page, cddl := string(read(t, "LINE.md")), string(read(t, "line.cddl"))
	schema := loadSchema(t)
	for _, o := range []struct {
		rule  string
		known uint64
		node  map[string]any
	}{
		{"message", topKeys, schema},
		{"patient", patientKeys, schema["properties"].(map[string]any)["patient"].(map[string]any)},
		{"observation", readingKeys, schema.def("observation")},
		{"alarm", alarmKeys, schema.def("alarm")},
		{"waveform", waveformKeys, schema.def("waveform")},
	} {
		var want, inCDDL, inSchema []string
		for k := 1; k < keyCount; k++ {
			if o.known&(1<<k) != 0 {
				want = append(want, fmt.Sprint(k))
			}
		}
		body := regexp.MustCompile(`(?ms)^` + o.rule + ` = \{\n(.*?)^\}`).FindStringSubmatch(cddl)
		if body == nil {
			t.Fatalf("line.cddl has no %s", o.rule)
		}
		for _, m := range regexp.MustCompile(`(?m)^  (\? )?([0-9]+): (.*)$`).FindAllStringSubmatch(body[1], -1) {
			inCDDL = append(inCDDL, m[2])
		}
		for name := range o.node["properties"].(map[string]any) {
			inSchema = append(inSchema, fmt.Sprint(keyOf(name)))
		}
		byNumber := func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) }
		slices.SortFunc(inSchema, byNumber)
		if !slices.Equal(inCDDL, want) || !slices.Equal(inSchema, want) {
			t.Errorf("%s: CDDL has %v, schema %v, code %v", o.rule, inCDDL, inSchema, want)
		}
	}
	for k := 1; k < keyCount; k++ {
		row := fmt.Sprintf("| `%s` | %d |", Names[k], k)
		switch k {
		case keyAuthority, keyVisit:
			row = fmt.Sprintf("`%s` (%d)", Names[k], k)
		case keyLower, keyUpper:
			row = "| `lower`, `upper` | 23, 24 |"
		}
		if !strings.Contains(page, row) {
			t.Errorf("LINE.md has no %s", row)
		}
	}
}

// The schema is no wider than what is understood, and hardly narrower.
func TestSchemaTellsWhatIsUnderstood(t *testing.T) {
	schema := loadSchema(t)
	for raw, fits := range map[string]bool{
		`{"id":1}`: true, `{"id":"a","observations":[{"code":1,"value":1e3}]}`: true, `{"id":1.5}`: false, `{"id":""}`: false, `{"id":1,"x":1}`: false,
		`{"id":1,"bed":7}`: false, `{"id":1,"time":"yesterday"}`: false, `{"id":1,"observations":[{"value":1}]}`: false, `{"id":1,"observations":{}}`: false,
		`{"id":1,"alarms":[{"code":1,"priority":"urgent"}]}`: false, `{"id":1,"waveforms":[{"code":1,"period":"4","samples":[1.5]}]}`: false,
		`{"id":1,"waveforms":[{"code":1,"period":"4","factor":"x","samples":[]}]}`: false, `{"id":1,"waveforms":[{"code":1,"period":"4","samples":[1,null]}]}`: true,
	} {
		if fault := schema.check([]byte(raw)); (fault == "") != fits {
			t.Errorf("%s: %q", raw, fault)
		}
	}
}

// schema is a JSON schema, as far as line.schema.json uses the language; a word of it that is not known here fails the test.
type schema map[string]any

func loadSchema(t *testing.T) schema {
	t.Helper()
	var s schema
	if err := json.Unmarshal(read(t, "line.schema.json"), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s schema) def(name string) map[string]any {
	return s["$defs"].(map[string]any)[name].(map[string]any)
}

func (s schema) check(raw []byte) string {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return err.Error()
	}
	return s.fault(s, v, "message")
}

func (s schema) fault(node map[string]any, v any, at string) string {
	if ref, ok := node["$ref"].(string); ok {
		return s.fault(s.def(strings.TrimPrefix(ref, "#/$defs/")), v, at)
	}
	number, isNumber := v.(float64)
	text, isText := v.(string)
	object, isObject := v.(map[string]any)
	list, isList := v.([]any)
	for word, rule := range node {
		bad := false
		switch word {
		case "$schema", "$id", "$defs", "title", "description":
		case "type":
			kinds, ok := rule.([]any)
			if !ok {
				kinds = []any{rule}
			}
			bad = !slices.ContainsFunc(kinds, func(k any) bool {
				_, isBool := v.(bool)
				return k == "string" && isText || k == "number" && isNumber || k == "integer" && isNumber && number == math.Trunc(number) ||
					k == "object" && isObject || k == "array" && isList || k == "boolean" && isBool || k == "null" && v == nil
			})
		case "oneOf":
			n := 0
			for _, alternative := range rule.([]any) {
				if s.fault(alternative.(map[string]any), v, at) == "" {
					n++
				}
			}
			bad = n != 1
		case "enum":
			bad = !slices.Contains(rule.([]any), v)
		case "minLength":
			bad = isText && utf8.RuneCountInString(text) < int(rule.(float64))
		case "maxLength":
			bad = isText && utf8.RuneCountInString(text) > int(rule.(float64))
		case "minimum":
			bad = isNumber && number < rule.(float64)
		case "maximum":
			bad = isNumber && number > rule.(float64)
		case "pattern":
			bad = isText && !regexp.MustCompile(rule.(string)).MatchString(text)
		case "required":
			for _, key := range rule.([]any) {
				if _, has := object[key.(string)]; isObject && !has {
					bad = true
				}
			}
		case "items":
			for i, e := range list {
				if f := s.fault(rule.(map[string]any), e, fmt.Sprintf("%s[%d]", at, i)); f != "" {
					return f
				}
			}
		case "properties":
			for key, e := range object {
				if p, ok := rule.(map[string]any)[key]; ok {
					if f := s.fault(p.(map[string]any), e, at+"."+key); f != "" {
						return f
					}
				}
			}
		case "additionalProperties":
			for key := range object {
				if _, ok := node["properties"].(map[string]any)[key]; !ok {
					bad = true
				}
			}
		default:
			return "the schema says " + word + ", which this test does not know"
		}
		if bad {
			return at + ": " + word
		}
	}
	return ""
}
