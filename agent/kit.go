package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"wardlink/enroll"
	"wardlink/internal/durable"
)

// bootPlaces are the directories on the boot partition, where images of the field mount it, in which a gateway looks for its kit (kit.json)
// and its configuration (agent.yaml). The boot partition is FAT: it can be written on any desk, so one image and one kit make two hundred
// gateways.
var bootPlaces = []string{"/boot/firmware/wardlink", "/boot/wardlink", "/boot/efi/wardlink", "/efi/wardlink"}

// etcPlace is the installed system's own.
const etcPlace = "/etc/wardlink"

// kitDirs: what somebody put into the running system was meant for this gateway.
func kitDirs() []string { return append([]string{etcPlace}, bootPlaces...) }

// ConfigDirs lists the directories in which agent.yaml is looked for. The package always puts one into /etc/wardlink, so one on the boot partition,
// which somebody put there, comes first.
func ConfigDirs() []string { return append(append([]string(nil), bootPlaces...), etcPlace) }

const (
	kitFile   = "kit.json"
	maxKitLen = 64 << 10
)

// HeldKit is the kit that a gateway follows, and where it stands.
//
// Who can replace a kit decides whom the gateway trusts. So the first start copies the kit that it found into the state directory, and
// once the gateway is enrolled only that copy counts: another kit that lies in one of the directories is reported and not followed, until
// somebody who may write the state directory says 'wardlink-agent kit adopt FILE'. Before enrolment nothing hangs on it yet, and a
// kit that was mended on the boot partition is followed.
type HeldKit struct {
	enroll.Kit
	Path    string // of the copy, or of the found file while there is no copy of it yet
	Copied  bool   // Path is the copy
	Other   string // a kit that was found and is not followed; "" is none
	Refused string // its short fingerprint, or why it cannot be read
	data    []byte
}

// keptKit is where the copy is.
func (c Config) keptKit() string { return filepath.Join(c.State, kitFile) }

// kitPlaces are where a kit is looked for: at the configured path alone, or in each of kitDirs.
func (c Config) kitPlaces() (out []string) {
	if c.Kit != "" {
		return []string{c.Kit}
	}
	for _, dir := range kitDirs() {
		out = append(out, filepath.Join(c.root, dir, kitFile))
	}
	return out
}

// LoadKit says which kit this gateway follows. It changes nothing.
func (c Config) LoadKit() (HeldKit, error) {
	found, foundErr := c.findKit()
	copied, err := readKit(c.keptKit())
	switch {
	case err == nil && foundErr == nil && found.Fingerprint != copied.Fingerprint && !c.enrolled():
		return found, nil
	case err == nil:
		copied.Copied = true
		if foundErr == nil && found.Fingerprint != copied.Fingerprint {
			copied.Other, copied.Refused = found.Path, found.ShortFingerprint()
		} else if foundErr != nil && !errors.Is(foundErr, fs.ErrNotExist) {
			copied.Other, copied.Refused = found.Path, foundErr.Error()
		}
		return copied, nil
	case foundErr != nil && !errors.Is(err, fs.ErrNotExist):
		return HeldKit{}, err
	case foundErr == nil && c.enrolled() && !c.mayFollow(found.Fingerprint, err):
		return HeldKit{}, fmt.Errorf("this gateway is enrolled, its copy of the kit is damaged, and the kit at %s (%s) is not known to be the same: compare that fingerprint with the hospital's, then run: wardlink-agent kit adopt %s (%w)",
			found.Path, found.ShortFingerprint(), found.Path, err)
	}
	return found, foundErr
}

// keptSum holds the SHA-256 of the kit that the copy is of, apart from the copy: one damage seldom takes both.
func (c Config) keptSum() string { return filepath.Join(c.State, "kit.sha256") }

// mayFollow tells whether a kit that was found may stand in for the copy of an enrolled gateway, which err keeps from being read: only the
// very same. Agents of before kept no sum; where the copy of such a one is missing, the kit that is found was followed always.
func (c Config) mayFollow(found [sha256.Size]byte, err error) bool {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOTDIR) {
		return true // not our state directory: no agent of ours runs on it, and its start says why
	}
	sum, serr := readBounded(c.keptSum(), 2*sha256.Size+2)
	if errors.Is(serr, fs.ErrNotExist) {
		return errors.Is(err, fs.ErrNotExist)
	}
	return serr == nil && strings.TrimSpace(string(sum)) == hex.EncodeToString(found[:])
}

// keep makes the copy durable, the sum first: a kill between the two leaves the former copy, which counts by itself.
func (c Config) keep(k HeldKit) error {
	if err := c.keepSum(k); err != nil {
		return err
	}
	return durable.WriteFile(c.keptKit(), k.data, 0o644)
}

func (c Config) keepSum(k HeldKit) error {
	return durable.WriteFile(c.keptSum(), []byte(hex.EncodeToString(k.Fingerprint[:])+"\n"), 0o644)
}

// findKit reads the first kit that is there.
func (c Config) findKit() (HeldKit, error) {
	tried := c.kitPlaces()
	for _, path := range tried {
		k, err := readKit(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return k, err
		}
	}
	return HeldKit{}, fmt.Errorf("kit: %w at %s; copy the file that 'wardlink provision kit' made there, or set 'kit:' in the configuration",
		fs.ErrNotExist, strings.Join(tried, ", "))
}

func readKit(path string) (HeldKit, error) {
	data, err := readBounded(path, maxKitLen+1)
	if err != nil {
		return HeldKit{Path: path}, fmt.Errorf("kit: %w", err)
	}
	k, err := enroll.ParseKit(data)
	if err != nil {
		return HeldKit{Path: path}, fmt.Errorf("%s: %w", path, err)
	}
	return HeldKit{Kit: k, Path: path, data: data}, nil
}

// enrolled tells whether this gateway has had a certificate. What cannot be looked at counts as one that has.
func (c Config) enrolled() bool {
	_, err := os.Stat(filepath.Join(c.State, "identity", "identity.pem"))
	return !errors.Is(err, fs.ErrNotExist)
}

// adoptKit is LoadKit, and makes the copy durable where there is none of it yet. The state directory must exist.
func (c Config) adoptKit(log *slog.Logger) (HeldKit, error) {
	k, err := c.LoadKit()
	if err != nil {
		return HeldKit{}, err
	}
	if k.Other != "" {
		log.Error("another kit lies there and is not followed: this gateway is enrolled with its own; to follow the other: wardlink-agent kit adopt FILE",
			"file", k.Other, "kit", k.Refused, "followed", k.ShortFingerprint())
	}
	if k.Copied {
		if !c.mayFollow(k.Fingerprint, nil) {
			if err := c.keepSum(k); err != nil { // the next start tries again
				log.Error("the kit's sum cannot be kept beside its copy", "path", c.keptSum(), "error", err)
			}
		}
		return k, nil
	}
	if _, err := readKit(c.keptKit()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		aside, aerr := durable.SetAside(c.keptKit())
		log.Error("the copy of the kit is damaged; the kit that was found is followed", "set_aside", aside, "error", errors.Join(err, aerr))
	}
	if err := c.keep(k); err != nil {
		return HeldKit{}, fmt.Errorf("kit: %w", err)
	}
	log.Info("kit copied: from the enrolment on, only the copy is followed", "from", k.Path, "to", c.keptKit(), "kit", k.ShortFingerprint(), "trust_domain", k.TrustDomain)
	k.Path, k.Copied = c.keptKit(), true
	return k, nil
}

// AdoptKit makes the kit of a file the one that this gateway follows, from the agent's next start on. It is an act of somebody who may
// write the state directory: the gateway trusts whom that kit names.
func (c Config) AdoptKit(path string) (HeldKit, error) {
	k, err := readKit(path)
	if err != nil {
		return HeldKit{}, err
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return HeldKit{}, explainState(c.State, err)
	}
	if err := c.keep(k); err != nil {
		return HeldKit{}, explainState(c.State, err)
	}
	k.Path, k.Copied = c.keptKit(), true
	return k, nil
}

// Examine has a finding where a kit lies about that is not followed.
func (k HeldKit) Examine() []Finding {
	if k.Other == "" {
		return nil
	}
	return []Finding{{
		Area: AreaKit, Level: Warning, Found: fmt.Sprintf("another kit lies at %s (%s) and is not followed: this gateway is enrolled with kit %s", k.Other, k.Refused, k.ShortFingerprint()),
		Mend: "if the hospital has made a new kit and its fingerprint is right: wardlink-agent kit adopt " + k.Other + ", and restart the agent; otherwise remove that file and ask who put it there",
	}}
}
