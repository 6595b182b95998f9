package slots

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// gateway makes slots of the test's own user, with version 1.4.0 in slot a as the current one.
func gateway(t *testing.T) Dir {
	t.Helper()
	root := t.TempDir()
	d := Dir{Path: filepath.Join(root, "wardlink", "slots"), Packaged: filepath.Join(root, "packaged"), Owner: uint32(os.Getuid())}
	for _, slot := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(d.Path, slot), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d.install(t, "a", "1.4.0")
	return d
}

func (d Dir) install(t *testing.T, slot, version string) {
	t.Helper()
	program := []byte("agent " + version)
	if err := os.WriteFile(filepath.Join(d.Path, slot, Program), program, 0o755); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(program)
	if err := d.SetCurrent(Current{Slot: slot, Version: version, SHA256: hex.EncodeToString(sum[:])}); err != nil {
		t.Fatal(err)
	}
}

func TestCurrentSlotStartsUnlessThePackageIsNewer(t *testing.T) {
	d := gateway(t)
	for version, slot := range map[string]string{"1.3.9": "a", "1.4.0": "a", "1.4.0-dev": "a", "1.4.1-dev": "", "1.4.1": "", "1.10.0": ""} {
		if c := d.Choose(version); c.Slot != slot || c.Damage != nil {
			t.Errorf("package %s: %+v; expected slot %q", version, c, slot)
		}
	}
	d.install(t, "b", "1.10.0")
	if c := d.Choose("1.9.0"); c.Slot != "b" || c.Path != filepath.Join(d.Path, "b", Program) {
		t.Errorf("after an update into b: %+v", c)
	}
}

func TestWithoutUpdatesThePackagesCopyStarts(t *testing.T) {
	d := gateway(t)
	if err := os.Remove(filepath.Join(d.Path, "current")); err != nil {
		t.Fatal(err)
	}
	if c := d.Choose("1.0.0"); c != (Choice{Path: d.Packaged}) {
		t.Errorf("%+v", c)
	}
	d.Path = filepath.Join(d.Path, "missing")
	if c := d.Choose("1.0.0"); c != (Choice{Path: d.Packaged}) {
		t.Errorf("no directory: %+v", c)
	}
}

// TestDamagedSlotFallsBack: each way in which a slot can be wrong leaves a gateway that runs, and says what was wrong.
func TestDamagedSlotFallsBack(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(d Dir) error
		says   string
	}{
		"program changed": {func(d Dir) error {
			return os.WriteFile(filepath.Join(d.Path, "a", Program), []byte("agent 1.4.1"), 0o755)
		}, "damaged"},
		"program missing": {func(d Dir) error { return os.Remove(filepath.Join(d.Path, "a", Program)) }, "no such file"},
		"slot missing":    {func(d Dir) error { return os.RemoveAll(filepath.Join(d.Path, "a")) }, "no such file"},
		"program is a link": {func(d Dir) error {
			path := filepath.Join(d.Path, "a", Program)
			return errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path))
		}, "plain file"},
		"others may write the program":   {func(d Dir) error { return os.Chmod(filepath.Join(d.Path, "a", Program), 0o777) }, "others may write"},
		"others may write the slot":      {func(d Dir) error { return os.Chmod(filepath.Join(d.Path, "a"), 0o777) }, "others may write"},
		"others may write the directory": {func(d Dir) error { return os.Chmod(d.Path, 0o775) }, "others may write"},
		"others may write its parent":    {func(d Dir) error { return os.Chmod(filepath.Dir(d.Path), 0o775) }, "others may write"},
		"others may write current":       {func(d Dir) error { return os.Chmod(filepath.Join(d.Path, "current"), 0o666) }, "others may write"},
		"current is torn": {func(d Dir) error {
			return os.WriteFile(filepath.Join(d.Path, "current"), []byte(`{"slot":"a",`), 0o644)
		}, "current"},
		"current is empty": {func(d Dir) error { return os.WriteFile(filepath.Join(d.Path, "current"), nil, 0o644) }, "current"},
	} {
		t.Run(name, func(t *testing.T) {
			d := gateway(t)
			if err := c.damage(d); err != nil {
				t.Fatal(err)
			}
			got := d.Choose("1.0.0")
			if got.Path != d.Packaged || got.Slot != "" || got.Damage == nil || !strings.Contains(got.Damage.Error(), c.says) {
				t.Errorf("%+v; expected the package's copy, and a word of %q", got, c.says)
			}
		})
	}
	t.Run("somebody else's", func(t *testing.T) {
		d := gateway(t)
		d.Owner++
		if got := d.Choose("1.0.0"); got.Path != d.Packaged || got.Damage == nil {
			t.Errorf("%+v", got)
		}
	})
}

func TestSetCurrentRefusesWhatItWouldNotRead(t *testing.T) {
	d := gateway(t)
	sum := strings.Repeat("ab", sha256.Size)
	for _, c := range []Current{{"c", "1.0.0", sum}, {"../a", "1.0.0", sum}, {"a", "one", sum}, {"a", "1.0.0", "abcd"}, {}} {
		if err := d.SetCurrent(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	if c, err := d.Current(); err != nil || c.Version != "1.4.0" {
		t.Errorf("afterwards: %+v, %v", c, err)
	}
	if err := os.Remove(filepath.Join(d.Path, "current")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Current(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}

// FuzzParse: whatever 'current' holds, reading it neither panics nor leads out of the two slots.
func FuzzParse(f *testing.F) {
	sum := strings.Repeat("ab", sha256.Size)
	f.Add([]byte(`{"slot":"a","version":"1.4.0","sha256":"` + sum + `"}`))
	f.Add([]byte(`{"slot":"b","version":"1.4.0-rc.1","sha256":"` + sum + `","later":[1]}` + "\n"))
	f.Add([]byte(`{"slot":"../../tmp","version":"1.4.0","sha256":"` + sum + `"}`))
	f.Add([]byte(`{"slot":"a"} {"slot":"b"}`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			return
		}
		if c.Slot != "a" && c.Slot != "b" || len(c.SHA256) != 2*sha256.Size || c.check() != nil {
			t.Fatalf("%+v", c)
		}
	})
}
