package agent

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wardlink/enroll"
	"wardlink/enroll/enrolltest"
	"wardlink/internal/durable"
	"wardlink/telemetry/seal"
)

// kitBytes is a kit of a hospital of its own.
func kitBytes(t *testing.T, domain string) []byte {
	t.Helper()
	key, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return enrolltest.Kit(t, domain, "127.0.0.1:1", key.Public())
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestKitPlaces: /etc before the boot partition, where the package puts no kit; a configured path alone; and what is said when there is none.
func TestKitPlaces(t *testing.T) {
	root := t.TempDir()
	c := Config{State: filepath.Join(root, "state"), root: root}
	if _, err := c.LoadKit(); err == nil || !strings.Contains(err.Error(), "wardlink provision kit") || !strings.Contains(err.Error(), "/boot/firmware/wardlink/kit.json") {
		t.Errorf("none: %v", err)
	}
	for _, dir := range slices.Backward(kitDirs()) {
		path := filepath.Join(root, dir, "kit.json")
		put(t, path, kitBytes(t, "ward.example"))
		if k, err := c.LoadKit(); err != nil || k.Path != path || k.Copied {
			t.Errorf("%s: %+v, %v", path, k.Path, err)
		}
	}
	c.Kit = filepath.Join(root, "elsewhere.json")
	if _, err := c.LoadKit(); err == nil {
		t.Error("a configured path that is not there gives way to others")
	}
}

// TestKitOnceEnrolled: whoever changes the kit decides whom a gateway trusts, so an enrolled one follows its own copy alone.
func TestKitOnceEnrolled(t *testing.T) {
	root := t.TempDir()
	var told bytes.Buffer
	log := slog.New(slog.NewTextHandler(&told, nil))
	c := Config{State: filepath.Join(root, "state"), root: root}
	boot := filepath.Join(root, "/boot/firmware/wardlink/kit.json")
	first, second := kitBytes(t, "ward.example"), kitBytes(t, "other.example")
	adopt := func() HeldKit {
		t.Helper()
		told.Reset()
		k, err := c.adoptKit(log)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, boot, second)
	if k := adopt(); k.TrustDomain != "other.example" || k.Path != c.keptKit() {
		t.Errorf("first start: %s at %s", k.TrustDomain, k.Path)
	}
	put(t, boot, first)
	if k := adopt(); k.TrustDomain != "ward.example" {
		t.Errorf("a kit mended before the enrolment is not followed: %s", k.TrustDomain)
	}
	put(t, filepath.Join(c.State, "identity", "identity.pem"), []byte("x"))
	put(t, boot, second)
	k := adopt()
	if k.TrustDomain != "ward.example" || k.Other != boot || len(k.Examine()) != 1 || !strings.Contains(told.String(), "not followed") {
		t.Errorf("an enrolled gateway follows %s; beside %q; log %s", k.TrustDomain, k.Other, told.String())
	}
	put(t, boot, []byte("torn"))
	if k := adopt(); k.TrustDomain != "ward.example" || k.Other != boot {
		t.Errorf("with a torn file on the boot partition: %+v", k.Other)
	}
	if err := os.Remove(boot); err != nil {
		t.Fatal(err)
	}
	if k := adopt(); k.TrustDomain != "ward.example" || k.Other != "" {
		t.Errorf("without the boot partition: %s, %q", k.TrustDomain, k.Other)
	}
	put(t, boot, second)
	if _, err := c.AdoptKit(boot); err != nil {
		t.Fatal(err)
	}
	if k := adopt(); k.TrustDomain != "other.example" || k.Other != "" {
		t.Errorf("after 'kit adopt': %s", k.TrustDomain)
	}
	put(t, c.keptKit(), []byte("torn"))
	put(t, boot, first)
	if k, err := c.adoptKit(log); err == nil || !strings.Contains(err.Error(), "kit adopt "+boot) {
		t.Errorf("whoever tears the copy and writes the boot partition decides: %s, %v", k.TrustDomain, err)
	}
	if err := os.Remove(c.keptKit()); err != nil {
		t.Fatal(err)
	}
	if k, err := c.LoadKit(); err == nil {
		t.Errorf("whoever removes the copy and writes the boot partition decides: %s", k.TrustDomain)
	}
	put(t, c.keptKit(), []byte("torn"))
	put(t, boot, second)
	if k := adopt(); k.TrustDomain != "other.example" || !strings.Contains(told.String(), "damaged") {
		t.Errorf("a damaged copy: %s; log %s", k.TrustDomain, told.String())
	}
	if _, err := os.Stat(c.keptKit() + durable.DamagedSuffix); err != nil {
		t.Errorf("the damaged copy is not kept: %v", err)
	}
	put(t, c.keptKit(), []byte("torn"))
	if err := os.Remove(boot); err != nil {
		t.Fatal(err)
	}
	if _, err := c.adoptKit(log); err == nil {
		t.Error("a gateway without any kit starts")
	}
}

// TestConfigPlaces: a gateway that is given no configuration has useful defaults, and one that lost its own does not take them.
func TestConfigPlaces(t *testing.T) {
	root := t.TempDir()
	c, err := loadConfig(root, "")
	if err != nil || c.From != BuiltIn || len(c.Sources) != 1 || c.Sources[0].MLLP != "0.0.0.0:2575" || len(c.Sources[0].Allow) == 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	c.State = filepath.Join(root, "state")
	if err := c.checkDefaults(); err != nil {
		t.Errorf("a fresh gateway: %v", err)
	}
	put(t, filepath.Join(c.State, "identity", "identity.pem"), []byte("x"))
	if err := c.checkDefaults(); err == nil || !strings.Contains(err.Error(), "bring it back") {
		t.Errorf("an enrolled gateway that lost its configuration: %v", err)
	}
	if err := c.markDefaults(); err != nil {
		t.Fatal(err)
	}
	if err := c.checkDefaults(); err != nil {
		t.Errorf("a gateway that began with the defaults: %v", err)
	}
	for _, dir := range slices.Backward(ConfigDirs()) {
		path := filepath.Join(root, dir, "agent.yaml")
		put(t, path, []byte("sources: [{id: bed-7, mllp: '127.0.0.1:2575'}]"))
		if c, err := loadConfig(root, ""); err != nil || c.From != path || c.Sources[0].ID != "bed-7" {
			t.Errorf("%s: %+v, %v", path, c, err)
		}
	}
	put(t, filepath.Join(root, ConfigDirs()[0], "agent.yaml"), []byte("sorces: []"))
	if _, err := loadConfig(root, ""); err == nil || !strings.Contains(err.Error(), "sorces") {
		t.Errorf("a wrong file gives way to the next: %v", err)
	}
	if _, err := loadConfig(root, filepath.Join(root, "none.yaml")); err == nil {
		t.Error("a named file that is not there gives way to others")
	}
}

// TestConsole: the fingerprint, for people and for a scanner, while the gateway waits; its name afterwards; nothing that agetty would read.
func TestConsole(t *testing.T) {
	dir := t.TempDir()
	kit, err := enroll.ParseKit(kitBytes(t, "ward.example"))
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{cfg: Config{Console: filepath.Join(dir, "none", "issue")}, kit: kit, log: slog.New(slog.DiscardHandler), tpmState: `no\dev \x1b[2J`}
	a.showConsole()
	if _, err := os.Stat(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Error("a directory that nobody made is made")
	}
	a.cfg.Console = filepath.Join(dir, "issue")
	read := func() string {
		t.Helper()
		a.showConsole()
		data, err := os.ReadFile(a.cfg.Console)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if text := read(); !strings.Contains(text, "not enrolled") || strings.ContainsAny(text, "\\\x1b") {
		t.Errorf("%q", text)
	}
	a.fingerprint = "ABCD-EFGH-IJKL-MNOP"
	a.waiting = a.fingerprint
	if text := read(); !strings.Contains(text, "gateway approve ABCD-EFGH-IJKL-MNOP") || strings.Count(text, "\n") < 18 || !strings.Contains(text, "█") {
		t.Errorf("%s", text)
	}
	a.identity = &enroll.Identity{Gateway: "icu-7"}
	if text := read(); !strings.Contains(text, "enrolled as icu-7") || strings.Contains(text, "ABCD") {
		t.Errorf("%s", text)
	}
}
