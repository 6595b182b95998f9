package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// maxCheckpoint bounds a signed checkpoint with room for some witnesses' signatures.
const maxCheckpoint = 16 << 10

// Origin names log n of a trust domain; it is the first line of every checkpoint and the name of the log's key.
func Origin(trustDomain string, n uint64) string {
	return trustDomain + "/log/" + strconv.FormatUint(n, 10)
}

// Checkpoint is the state of a log that its key signed.
type Checkpoint struct {
	Origin string
	Size   uint64
	Root   tlog.Hash
}

// OpenCheckpoint verifies a signed checkpoint with the log's public key (a note verifier key, "<origin>+<hash>+<key>"), whose name
// must be the checkpoint's origin.
func OpenCheckpoint(signed []byte, vkey string) (Checkpoint, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("log key: %w; expected <origin>+<hash>+<key> as the kit holds it", err)
	}
	if len(signed) > maxCheckpoint {
		return Checkpoint{}, fmt.Errorf("checkpoint: more than %d bytes", maxCheckpoint)
	}
	n, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w; expected a signature by the key of %s", err, verifier.Name())
	}
	for _, sig := range n.Sigs {
		// Go's base64 ignores the last unused bits; refuse them, so that a checkpoint cannot be changed at all and still pass.
		if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil {
			return Checkpoint{}, fmt.Errorf("checkpoint: signature by %s: %w", sig.Name, err)
		}
	}
	cp, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if cp.Origin != verifier.Name() {
		return Checkpoint{}, fmt.Errorf("checkpoint: origin is %q, the key belongs to %q", cp.Origin, verifier.Name())
	}
	return cp, nil
}

// UnverifiedCheckpoint reads a checkpoint without looking at its signatures: for the log's own writer and for listing a
// directory that is trusted anyway. It proves nothing.
func UnverifiedCheckpoint(signed []byte) (Checkpoint, error) {
	if len(signed) > maxCheckpoint {
		return Checkpoint{}, fmt.Errorf("checkpoint: more than %d bytes", maxCheckpoint)
	}
	body, _, ok := strings.Cut(string(signed), "\n\n")
	if !ok {
		return Checkpoint{}, errors.New("checkpoint: not a signed note")
	}
	return parseCheckpoint(body + "\n")
}

// parseCheckpoint reads the three lines of C2SP tlog-checkpoint; extension lines are refused, because nobody here would check them.
func parseCheckpoint(body string) (Checkpoint, error) {
	lines := strings.Split(body, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] == "" {
		return Checkpoint{}, errors.New("checkpoint: expected three lines: origin, size, root hash")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || size > math.MaxInt64 || strconv.FormatUint(size, 10) != lines[1] {
		return Checkpoint{}, errors.New("checkpoint: the second line is not a tree size")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return Checkpoint{}, errors.New("checkpoint: the third line is not a root hash")
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: tlog.Hash(root)}, nil
}
