// Package slots decides which of a gateway's agents starts. There are three: the one that the distribution's package brought, and slots
// a and b, which belong to whoever installs updates. The package never writes a slot and an update never writes the package's copy.
//
// The rule, in full. The file 'current' names a slot. That slot starts if
//
//   - it is not older than the package's copy, by version, so that an upgrade of the package takes effect, and
//   - its program is the one that 'current' names, by SHA-256, and
//   - directory, slot, program and 'current' belong to root, and nobody else may write them.
//
// Otherwise the package's copy starts, which the distribution's tools look after. The directory is root's, not the agent's: who breaks
// into an agent must not choose what the next start, or a root who asks 'wardlink-agent doctor', executes.
//
// Not here yet: a slot on trial, which goes back by itself when it does not deliver. It will be a second file beside 'current'.
package slots

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/mod/semver"

	"wardlink/internal/durable"
)

// The places of an installed agent.
const (
	Root     = "/var/lib/wardlink/slots"          // DIR/current, DIR/a/wardlink-agent, DIR/b/wardlink-agent
	Packaged = "/usr/lib/wardlink/wardlink-agent" // the package's copy
	Program  = "wardlink-agent"                   // name of the program within a slot
)

const (
	maxCurrent = 4 << 10
	maxProgram = 64 << 20 // bytes of a program; ours has 10 MB
)

// Current is what the file 'current' says, as JSON. Unknown keys are for later releases and ignored.
type Current struct {
	Slot    string `json:"slot"`    // "a" or "b"
	Version string `json:"version"` // of the program in it, such as 1.4.0
	SHA256  string `json:"sha256"`  // of the program, in hex
}

// Parse reads the text of 'current' and checks each value.
func Parse(data []byte) (Current, error) {
	if len(data) > maxCurrent {
		return Current{}, fmt.Errorf("%d bytes; expected at most %d", len(data), maxCurrent)
	}
	var c Current
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&c); err != nil {
		return Current{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Current{}, errors.New("something follows the document")
	}
	return c, c.check()
}

func (c Current) check() error {
	if c.Slot != "a" && c.Slot != "b" {
		return fmt.Errorf("slot: %q; expected a or b", c.Slot)
	}
	if !semver.IsValid("v" + c.Version) {
		return fmt.Errorf("version: %q; expected one such as 1.4.0", c.Version)
	}
	if sum, err := hex.DecodeString(c.SHA256); err != nil || len(sum) != sha256.Size {
		return fmt.Errorf("sha256: %q; expected %d bytes in hex", c.SHA256, sha256.Size)
	}
	return nil
}

// Dir is a gateway's slots. It is for one process at a time to write, and for any number to read meanwhile.
type Dir struct {
	Path     string // usually Root
	Packaged string // usually Packaged
	Owner    uint32 // who alone may write: 0, root
}

// Choice is the program to start.
type Choice struct {
	Path   string
	Slot   string // "a", "b", or "" for the package's copy
	Damage error  // why the current slot could not be taken although it should; nil when all is well
}

// Choose applies the rule; version is the package's. It never fails: whatever is wrong with a slot, the package's copy is left.
func (d Dir) Choose(version string) Choice {
	packaged := Choice{Path: d.Packaged}
	c, err := d.Current()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return packaged
	case err != nil:
		packaged.Damage = err
		return packaged
	case semver.Compare("v"+c.Version, "v"+version) < 0:
		return packaged
	}
	path := filepath.Join(d.Path, c.Slot, Program)
	if err := d.verify(path, c.SHA256); err != nil {
		packaged.Damage = fmt.Errorf("slot %s: %w", c.Slot, err)
		return packaged
	}
	return Choice{Path: path, Slot: c.Slot}
}

// Current reads the file 'current'; without one the error is fs.ErrNotExist.
func (d Dir) Current() (Current, error) {
	path := filepath.Join(d.Path, "current")
	for _, dir := range []string{filepath.Dir(d.Path), d.Path} {
		if err := d.trusted(dir, fs.ModeDir); err != nil {
			return Current{}, err
		}
	}
	data, err := d.read(path, maxCurrent)
	if err != nil {
		return Current{}, err
	}
	c, err := Parse(data)
	if err != nil {
		return Current{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// SetCurrent makes a slot, whose program must be durable already, the one that starts from now on. After a power cut in the middle the
// former choice or the new one stands. It is for who installs updates; nothing does yet, and only tests call it.
func (d Dir) SetCurrent(c Current) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("current slot: %w", err)
	}
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(d.Path, "current"), append(data, '\n'), 0o644)
}

// verify checks who may write a slot's program, and the program itself.
func (d Dir) verify(path, sum string) error {
	if err := d.trusted(filepath.Dir(path), fs.ModeDir); err != nil {
		return err
	}
	f, err := d.open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, maxProgram+1))
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); n > maxProgram || got != sum {
		return fmt.Errorf("%s is damaged: its SHA-256 is %s and should be %s", path, got, sum)
	}
	return nil
}

func (d Dir) read(path string, most int64) ([]byte, error) {
	f, err := d.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most+1))
}

// open opens a file that nobody but the owner may write. It follows no link and waits for no pipe.
func (d Dir) open(path string) (*os.File, error) {
	if err := d.trusted(path, 0); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
}

// trusted is nil for a file of the given type that belongs to the owner and that nobody else may write.
func (d Dir) trusted(path string, kind fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode().Type() != kind:
		return fmt.Errorf("%s is %s; expected a plain file in directories that are no links", path, info.Mode())
	case !ok || st.Uid != d.Owner:
		return fmt.Errorf("%s does not belong to user %d; what somebody else may have written is not started", path, d.Owner)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s has mode %s; what others may write is not started", path, info.Mode())
	}
	return nil
}
