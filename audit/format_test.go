package audit

import (
	"encoding/hex"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// exampleKey signs the examples of FORMAT.md and nothing else.
const exampleKey = "PRIVATE+KEY+ward.example/log/1+e3b76287+AS/qjxgFZISDBSv7jrfbrOll7C0hHSKHoIngOy91K+/N"

// blocks are the fenced examples of FORMAT.md by their info strings.
func blocks(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)```([a-z ]+)\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		if found[m[1]] != "" {
			t.Errorf("FORMAT.md: two examples %q", m[1])
		}
		found[m[1]] = m[2]
	}
	return found
}

// exampleLog is the log that the examples show.
func exampleLog(t *testing.T) (m *maker, checkpoint []byte) {
	t.Helper()
	m = newMaker(t)
	signer, err := note.NewSigner(exampleKey)
	m.must(err)
	m.signer = signer
	m.event()
	m.window(3)
	m.event()
	return m, m.publish()
}

func TestFormatExamples(t *testing.T) {
	page := blocks(t)
	m, checkpoint := exampleLog(t)
	m.vkey = strings.TrimSpace(page["vkey"])
	row, err := EncodeRow(testRow(3))
	m.must(err)
	for name, want := range map[string][]byte{"hex event": m.leaves[0], "hex window": m.leaves[1], "hex row": row} {
		if got, err := hex.DecodeString(strings.Join(strings.Fields(page[name]), "")); err != nil || string(got) != string(want) {
			t.Errorf("FORMAT.md %s: expected\n%s", name, wrap(want))
		}
	}
	if page["checkpoint"] != string(checkpoint) {
		t.Errorf("FORMAT.md checkpoint: expected\n%s", checkpoint)
	}
	if cp, err := OpenCheckpoint([]byte(page["checkpoint"]), m.vkey); err != nil || cp.Size != 3 || cp.Origin != Origin("ward.example", 1) {
		t.Errorf("FORMAT.md checkpoint: %+v, %v", cp, err)
	}
	b, err := Prove(m.dir, m.vkey, Query{Gateway: "gw-1", Lane: 1, Number: 3})
	m.must(err)
	if page["json bundle"] != string(encoded(t, b)) {
		t.Errorf("FORMAT.md bundle: expected\n%s", encoded(t, b))
	}
	if v, err := CheckBundle([]byte(page["json bundle"]), m.vkey); err != nil || v.Row == nil || *v.Row != testRow(3) {
		t.Errorf("FORMAT.md bundle: %+v, %v", v, err)
	}
	if _, err := Verify(m.dir, m.vkey); err != nil {
		t.Error(err)
	}
}

// TestFormatTypes: the page's table and the constants of event.go name the same types.
func TestFormatTypes(t *testing.T) {
	page, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("event.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := regexp.MustCompile(`Type = "([a-z._]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(constants) < 20 {
		t.Fatalf("%d types found in event.go", len(constants))
	}
	for _, m := range constants {
		if !slices.Contains(Types(), Type(m[1])) {
			t.Errorf("Types does not have %q", m[1])
		}
		if !strings.Contains(string(page), "| `"+m[1]+"` |") {
			t.Errorf("FORMAT.md does not list type %q", m[1])
		}
	}
	if rows := strings.Count(string(page), "\n| `"); rows < len(constants) {
		t.Errorf("FORMAT.md lists %d types; event.go has %d", rows, len(constants))
	}
}

func wrap(data []byte) string {
	s := hex.EncodeToString(data)
	var out strings.Builder
	for len(s) > 120 {
		out.WriteString(s[:120] + "\n")
		s = s[120:]
	}
	return out.String() + s
}
