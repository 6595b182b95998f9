package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// FormerDir is where a server's directory keeps the logs that restores ended.
const FormerDir = "former"

// FormerLog is the place of log number n in a server's directory once a restore has ended it, and of its public key.
func FormerLog(dir string, n uint64) (log, key string) {
	log = filepath.Join(dir, FormerDir, fmt.Sprintf("log-%d", n))
	return log, log + ".pub"
}

// Former is a log that a restore ended.
type Former struct {
	Number uint64
	Dir    string
	Key    string // note verifier key
}

// FormerLogs lists the former logs of a server's directory by number. A directory without any is no error.
func FormerLogs(dir string) (out []Former, err error) {
	keys, err := filepath.Glob(filepath.Join(dir, FormerDir, "log-*.pub"))
	if err != nil {
		return nil, err
	}
	for _, path := range keys {
		log := strings.TrimSuffix(path, ".pub")
		n, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(log), "log-"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: expected log-<number>.pub", path)
		}
		key, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		out = append(out, Former{Number: n, Dir: log, Key: strings.TrimSpace(string(key))})
	}
	slices.SortFunc(out, func(a, b Former) int {
		if a.Number < b.Number {
			return -1
		}
		return 1
	})
	return out, nil
}

// CheckSuccession says whether the log in dir begins where the former one ended: its first leaf is a log.succeeded that names the former log's
// key and a checkpoint that this key signed, and the former log went through that state. Both logs must have been verified; the former one may hold more
// than the checkpoint, if it is a copy that outlived the backup. It gives that leaf's event.
func CheckSuccession(dir, vkey string, former Former) (Event, error) {
	_, cp, err := ReadCheckpoint(dir, vkey)
	if err != nil {
		return Event{}, err
	}
	fail := func(format string, args ...any) (Event, error) {
		return Event{}, fmt.Errorf("log %s does not succeed the one in %s: %s", cp.Origin, former.Dir, fmt.Sprintf(format, args...))
	}
	if cp.Size == 0 {
		return fail("it is empty; its server writes the first leaf when it is started, so run that and verify again")
	}
	entries, err := openDir(dir).bundle(0, int(min(cp.Size, tileWidth)))
	if err != nil {
		return Event{}, err
	}
	leaf, err := DecodeLeaf(entries[0])
	if err != nil {
		return Event{}, err
	}
	if leaf.Event == nil || leaf.Event.Type != LogSucceeded {
		return fail("its first leaf is no %s", LogSucceeded)
	}
	if leaf.Event.Detail["key"] != former.Key {
		return fail("its first leaf names another key")
	}
	named, err := OpenCheckpoint([]byte(leaf.Event.Detail["checkpoint"]), former.Key)
	if err != nil {
		return fail("its first leaf: %v", err)
	}
	_, last, err := ReadCheckpoint(former.Dir, former.Key)
	if err != nil {
		return Event{}, err
	}
	if leaf.Event.Target != last.Origin || named.Origin != last.Origin {
		return fail("its first leaf names %q, the log is %q", leaf.Event.Target, last.Origin)
	}
	if named.Size > last.Size {
		return fail("it begins behind %d leaves, and that log has %d: it was put back", named.Size, last.Size)
	}
	root, err := RootAt(former.Dir, tlog.Tree{N: int64(last.Size), Hash: last.Root}, named.Size)
	if err != nil {
		return Event{}, err
	}
	if root != named.Root {
		return fail("the first %d leaves of that log are not those of the checkpoint that it names", named.Size)
	}
	return *leaf.Event, nil
}
