package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// bundleVersion is the format's version; CheckBundle refuses others.
const bundleVersion = 1

// MaxBundle bounds a proof bundle in bytes: a leaf and a row in base64, a checkpoint and two proofs.
const MaxBundle = 1 << 20

// Bundle is a proof that one act is in the log, for somebody who has only the log's public key. Its JSON is self-contained.
type Bundle struct {
	Version    int        `json:"wardlink_proof"`
	Checkpoint string     `json:"checkpoint"` // signed note
	Index      uint64     `json:"index"`      // of the leaf
	Leaf       []byte     `json:"leaf"`
	Proof      [][]byte   `json:"proof"` // RFC 6962 audit path of the leaf
	Row        *BundleRow `json:"row,omitempty"`

	// Summary is for a person's eye. It proves nothing, and CheckBundle refuses one that says something else than what is proven.
	Summary map[string]string `json:"summary,omitempty"`
}

// BundleRow proves one publish within the bundle's window leaf.
type BundleRow struct {
	Index uint64   `json:"index"`
	Row   []byte   `json:"row"`
	Proof [][]byte `json:"proof"` // RFC 6962 audit path of the row in the window's tree
}

// Verdict is what a bundle proves: that the key of Origin signed a log of Size leaves, of which leaf Index is the event, the
// window, or the window that holds the row.
type Verdict struct {
	Origin   string
	Size     uint64
	Root     tlog.Hash
	Index    uint64
	Event    *Event
	Window   *Window
	Row      *Row // set together with Window when the bundle proves a publish
	RowIndex uint64
}

// CheckBundle verifies a bundle's JSON with nothing but the log's public key. It recomputes everything. A summary that differs from
// what is proven is refused: somebody will read it.
func CheckBundle(data []byte, vkey string) (Verdict, error) {
	b, err := ParseBundle(data)
	if err != nil {
		return Verdict{}, err
	}
	cp, err := OpenCheckpoint([]byte(b.Checkpoint), vkey)
	if err != nil {
		return Verdict{}, err
	}
	if b.Index >= cp.Size {
		return Verdict{}, fmt.Errorf("proof: leaf %d is not among the checkpoint's %d", b.Index, cp.Size)
	}
	if err := checkProof(b.Proof, cp.Size, cp.Root, b.Index, b.Leaf); err != nil {
		return Verdict{}, fmt.Errorf("proof: leaf %d is not proven to be in the log: %w", b.Index, err)
	}
	leaf, err := DecodeLeaf(b.Leaf)
	if err != nil {
		return Verdict{}, err
	}
	verdict := Verdict{Origin: cp.Origin, Size: cp.Size, Root: cp.Root, Index: b.Index, Event: leaf.Event, Window: leaf.Window}
	if b.Row == nil {
		return verdict, b.checkSummary(verdict, cp)
	}
	if leaf.Window == nil {
		return Verdict{}, fmt.Errorf("proof: leaf %d is an event, not a window with rows", b.Index)
	}
	if b.Row.Index >= leaf.Window.Count {
		return Verdict{}, fmt.Errorf("proof: row %d is not among the window's %d", b.Row.Index, leaf.Window.Count)
	}
	if err := checkProof(b.Row.Proof, leaf.Window.Count, leaf.Window.Root, b.Row.Index, b.Row.Row); err != nil {
		return Verdict{}, fmt.Errorf("proof: row %d is not proven to be in the window: %w", b.Row.Index, err)
	}
	row, err := DecodeRow(b.Row.Row)
	if err != nil {
		return Verdict{}, err
	}
	verdict.Row, verdict.RowIndex = &row, b.Row.Index
	return verdict, b.checkSummary(verdict, cp)
}

// checkSummary holds the words for a person against what is proven.
func (b Bundle) checkSummary(v Verdict, cp Checkpoint) error {
	proven := Item{Index: v.Index, Event: v.Event, Window: v.Window, Row: v.Row}.summary(cp)
	for _, key := range slices.Sorted(maps.Keys(b.Summary)) {
		if said, ok := proven[key]; !ok || b.Summary[key] != said {
			return fmt.Errorf("proof: its summary says %s %.100q, but what it proves is %q", key, b.Summary[key], proven[key])
		}
	}
	return nil
}

// ParseBundle reads a bundle's JSON and verifies nothing; fields it does not know are refused, and so is a key that comes twice or in
// other letters: Go's decoder takes the last of "leaf" and "LEAF", others take the first, and they must not see two proofs in one.
func ParseBundle(data []byte) (Bundle, error) {
	if len(data) > MaxBundle {
		return Bundle{}, fmt.Errorf("proof: more than %d bytes", MaxBundle)
	}
	var b Bundle
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		return Bundle{}, fmt.Errorf("proof: %w; expected the JSON that `wardlink audit prove` prints", err)
	}
	// A second object would be read by some programs and not by others.
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Bundle{}, errors.New("proof: something follows the JSON object")
	}
	if err := checkKeys(json.NewDecoder(bytes.NewReader(data)), ""); err != nil {
		return Bundle{}, err
	}
	if b.Version != bundleVersion {
		return Bundle{}, fmt.Errorf("proof: version %d; this program knows version %d", b.Version, bundleVersion)
	}
	return b, nil
}

// bundleKeys are the keys of a bundle's objects, exactly as written. The third object, summary, may have any.
var bundleKeys = map[string][]string{
	"":    {"wardlink_proof", "checkpoint", "index", "leaf", "proof", "row", "summary"},
	"row": {"index", "row", "proof"},
}

// checkKeys walks the JSON value that comes next, which stands under the key name. The value was decoded into a Bundle before, which
// bounds its depth.
func checkKeys(dec *json.Decoder, name string) error {
	token, err := dec.Token()
	if err != nil {
		return fmt.Errorf("proof: %w", err)
	}
	open, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for dec.More() {
		below := "element"
		if open == '{' {
			if token, err = dec.Token(); err != nil {
				return fmt.Errorf("proof: %w", err)
			}
			below, _ = token.(string)
			if known := bundleKeys[name]; known != nil && !slices.Contains(known, below) {
				return fmt.Errorf("proof: key %.100q is not one of %q, which are in lower case", below, known)
			}
			if seen[below] {
				return fmt.Errorf("proof: key %.100q comes twice", below)
			}
			seen[below] = true
		}
		if err := checkKeys(dec, below); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("proof: %w", err)
	}
	return nil
}

// Encode gives the bundle as indented JSON with a newline at its end.
func (b Bundle) Encode() ([]byte, error) {
	data, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode proof: %w", err)
	}
	return append(data, '\n'), nil
}

// checkProof verifies that data is leaf index of the tree of size leaves with that root. A tree of 2^63 leaves has proofs of 63 hashes.
func checkProof(raw [][]byte, size uint64, root tlog.Hash, index uint64, data []byte) error {
	if len(raw) > 64 || size > math.MaxInt64 {
		return errors.New("the proof is too long")
	}
	proof := make(tlog.RecordProof, len(raw))
	for i, h := range raw {
		if len(h) != tlog.HashSize {
			return fmt.Errorf("hash %d of the proof has %d bytes", i, len(h))
		}
		proof[i] = tlog.Hash(h)
	}
	return tlog.CheckRecord(proof, int64(size), root, int64(index), tlog.RecordHash(data))
}

// rawProof is a proof as the bundle holds it: JSON has base64 for byte slices, and numbers for arrays.
func rawProof(proof []tlog.Hash) [][]byte {
	raw := make([][]byte, len(proof))
	for i, h := range proof {
		raw[i] = bytes.Clone(h[:])
	}
	return raw
}
