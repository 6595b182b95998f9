package strictyaml

import (
	"strings"
	"testing"
)

type config struct {
	Name  string   `yaml:"name"`
	List  []item   `yaml:"list"`
	Proxy settings `yaml:"proxy"`
}

type item struct {
	ID string `yaml:"id"`
}

type settings struct {
	URL         string `yaml:"url"`
	Credentials string `yaml:"credentials"`
}

// TestErrorsKeepSecrets: however a password gets into the wrong place, no message shows it; line and column stay.
func TestErrorsKeepSecrets(t *testing.T) {
	for _, text := range []string{
		"proxy: http://u:pw123@h:1\n",
		"proxy: {http://u:pw123@h:1}\n",
		"proxy: {url: http://u:pw123@h:1, credential: /x}\n",
		"proxy:\n  url: http://u:pw123@h:1\n  credentals: u:pw123\n",
		"proxy:\n  url: [http://u:pw123@h:1]\n",
		"proxy:\n  url: \"http://u:pw123@h:1\n",
		"http://u:pw123@h:1: x\n",
		"proxy:\n  url: http://h:1\n  credentials: u:pw123\nnmae: x\n",
		"list: http://u:pw123@h:1\n",
		"name: {http://u:pw123@h:1: 1}\n",
	} {
		var c config
		err := Decode([]byte(text), &c)
		if err == nil || strings.Contains(err.Error(), "pw123") || !strings.HasPrefix(err.Error(), "[") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := Decode([]byte("proxy: http://h:1\n"), &config{}); err == nil || err.Error() != "[1:8] proxy: string was used where mapping is expected" {
		t.Errorf("%v", err)
	}
	if err := Decode([]byte("name: x\nnmae: y\n"), &config{}); err == nil || err.Error() != `[2:1] unknown field "nmae"; did you mean name?` {
		t.Errorf("%v", err)
	}
}

// TestAnUnknownKeyIsPutRight: its line, and the key that was meant, also deep in the file.
func TestAnUnknownKeyIsPutRight(t *testing.T) {
	for text, want := range map[string]string{
		"name: x\nlsit: []\n":                                 `[2:1] unknown field "lsit"; did you mean list?`,
		"list:\n  - id: a\n  - ids: b\n":                      `[3:5] unknown field "ids"; did you mean id?`,
		"proxy:\n  url: http://h:1\n  credentails: /x\n":      `[3:3] unknown field "credentails"; did you mean credentials?`,
		"url: http://h:1\n":                                   `[1:1] unknown field "url"; it belongs below proxy`,
		"list:\n  - id: a\n    name: b\n":                     `[3:5] unknown field "name"; it belongs to the top of the file: is it indented too far?`,
		"name: x\nid: a\n":                                    `[2:1] unknown field "id"; it belongs below list[]`,
		"deep: 1\n":                                           `[1:1] unknown field "deep"`,
		"zzzzzzzz: 1\n":                                       `[1:1] unknown field "zzzzzzzz"`,
		strings.Repeat("n", 5000) + ": 1\n":                   `[1:1] unknown field "` + strings.Repeat("n", 5000) + `"`,
		"name: x\nproxy: {url: http://h:1, credential: /x}\n": `[2:26] proxy: unknown field "credential"; did you mean credentials?`,
	} {
		if err := Decode([]byte(text), &config{}); err == nil || err.Error() != want {
			t.Errorf("%.60q: %.300v; expected %.300s", text, err, want)
		}
	}
}

// FuzzDecode: no text ends the program.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{"name: x\nlist: [{id: a}]\n", "list: !tag ", "list: [!tag ]", "a: &a [*a]\n", "? \n", "name: !!binary eA==\n", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c config
		if err := Decode(data, &c); err != nil && strings.TrimSpace(err.Error()) == "" {
			t.Error("an error that says nothing")
		}
	})
}
