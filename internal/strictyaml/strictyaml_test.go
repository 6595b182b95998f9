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
	if err := Decode([]byte("name: x\nnmae: y\n"), &config{}); err == nil || err.Error() != `[2:1] unknown field "nmae"` {
		t.Errorf("%v", err)
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
