package backup

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testKey(t testing.TB) Key {
	k, err := NewKey(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sealed(t testing.TB, plain []byte) []byte {
	var out bytes.Buffer
	s, err := newSealer(&out, testKey(t), []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	for len(plain) > 0 { // in pieces that no chunk is a multiple of
		n := min(len(plain), 1013)
		if _, err := s.Write(plain[:n]); err != nil {
			t.Fatal(err)
		}
		plain = plain[n:]
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func open(t testing.TB, data []byte) ([]byte, error) {
	r := bufio.NewReader(bytes.NewReader(data))
	h, err := ReadHeader(r)
	if err != nil {
		return nil, err
	}
	o, err := newOpener(r, h, testKey(t))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(o)
}

func TestStreamOpensOnlyAsItWasWritten(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3 * chunkSize} {
		plain := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		data := sealed(t, plain)
		if got, err := open(t, data); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes: %d came back, %v", size, len(got), err)
		}
		head := len(data) - size - overhead*max(1, (size+chunkSize-1)/chunkSize)
		full := chunkSize + overhead
		bad := map[string][]byte{"a byte less": data[:len(data)-1], "a byte more": append(bytes.Clone(data), 0), "only the header": data[:head]}
		for at := 0; at < len(data); at += max(1, len(data)/97) {
			b := bytes.Clone(data)
			b[at] ^= 0x10
			bad[fmt.Sprintf("byte %d", at)] = b
		}
		if size == 3*chunkSize {
			first, second := data[head:head+full], data[head+full:head+2*full]
			bad["without its last chunk"] = data[:len(data)-full]
			bad["without its first chunk"] = append(bytes.Clone(data[:head]), data[head+full:]...)
			bad["two chunks exchanged"] = append(append(append(bytes.Clone(data[:head]), second...), first...), data[head+2*full:]...)
		}
		for name, b := range bad {
			if got, err := open(t, b); err == nil {
				t.Errorf("%d bytes, %s: %d bytes were given out as whole", size, name, len(got))
			}
		}
	}
}

// archive writes a backup whose files and manifest the caller may bend.
func archive(t *testing.T, files map[string]string, bend func(*Writer, *Manifest)) []byte {
	var out bytes.Buffer
	list, err := os.Create(filepath.Join(t.TempDir(), "list"))
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	w, err := NewWriter(&out, testKey(t), nil, list)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := w.Add(name, int64(len(text)), strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	var m Manifest
	bend(w, &m)
	if _, err := w.Close(m); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func extract(t *testing.T, data []byte, dir string) (Manifest, error) {
	r := bufio.NewReader(bytes.NewReader(data))
	h, err := ReadHeader(r)
	if err != nil {
		t.Fatal(err)
	}
	return Extract(r, h, testKey(t), dir, func(name string) bool { return !strings.HasPrefix(name, "keys/") })
}

func TestExtractTakesOnlyWhatTheManifestSays(t *testing.T) {
	files := map[string]string{"server.yaml": "a", "public/root.crt": "b", "log/tile/0/000": "c"}
	same := func(*Writer, *Manifest) {}
	dir := t.TempDir()
	m, err := extract(t, archive(t, files, same), dir)
	if err != nil || m.Files != 3 || m.Bytes != 3 {
		t.Fatalf("%+v, %v", m, err)
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := extract(t, archive(t, files, same), dir); err == nil {
		t.Error("files that were there were overwritten")
	}
	for name, c := range map[string]struct {
		files map[string]string
		bend  func(*Writer, *Manifest)
	}{
		"a file too few":          {files, func(w *Writer, _ *Manifest) { w.files++ }},
		"a byte too few":          {files, func(w *Writer, _ *Manifest) { w.bytes++ }},
		"a list of other hashes":  {files, func(w *Writer, _ *Manifest) { w.sum.Write([]byte("more")) }},
		"a file that is no one's": {map[string]string{"keys/log/log.key": "k"}, same},
	} {
		if _, err := extract(t, archive(t, c.files, c.bend), t.TempDir()); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

func TestNamesStayWithinTheDirectory(t *testing.T) {
	for _, name := range []string{"", ".", "..", "/etc/passwd", "../up", "a/../../up", "a//b", "a/./b", "a\nb", `a\b`, strings.Repeat("x", maxPath+1)} {
		if checkName(name) == nil {
			t.Errorf("%q is taken", name)
		}
	}
	if err := checkName("log/tile/0/x001/000"); err != nil {
		t.Error(err)
	}
}

// TestFormatExample keeps the manifest in FORMAT.md one that this program writes.
func TestFormatExample(t *testing.T) {
	text, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "```json manifest\n")
	example, _, ok2 := strings.Cut(rest, "```")
	if !ok || !ok2 {
		t.Fatal("FORMAT.md has no manifest")
	}
	dec := json.NewDecoder(strings.NewReader(example))
	dec.DisallowUnknownFields()
	var m Manifest
	if err := dec.Decode(&m); err != nil {
		t.Fatal(err)
	}
	again, err := json.MarshalIndent(m, "", "  ")
	if err != nil || string(again) != strings.TrimSpace(example) {
		t.Fatalf("%v: written as\n%s", err, again)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(magic))
	f.Add(sealed(f, []byte("text")))
	f.Add(sealed(f, nil)[:40])
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := open(t, data)
		if err == nil && len(got)+overhead > len(data) {
			t.Fatal("more came out than went in")
		}
	})
}

// FuzzArchive lets the fuzzer write what is within the encryption: a thief of the server's key might.
func FuzzArchive(f *testing.F) {
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		inner := filepath.Join(dir, "inner")
		_, _ = extract(t, sealed(t, data), inner)
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > 1 {
			t.Fatalf("written outside: %v, %v", entries, err)
		}
	})
}
