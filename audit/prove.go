package audit

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrNotLogged means that the log's checkpoint covers no such act. It may still be on its way: the log follows the journal by
// about a second.
var ErrNotLogged = errors.New("not in the log")

// maxEpochs bounds what an error about several epochs lists.
const maxEpochs = 16

// Query names one act: a publish by Gateway, Lane and Number, with Epoch where several starts of the gateway used the number; or,
// when Event is not zero, any act by its event id (an event, a window, or a publish's own id).
type Query struct {
	Gateway string
	Lane    uint8
	Number  uint64
	Epoch   *[16]byte // nil: any, if only one matches
	Event   EventID
}

// String names the act for a person, as errors do.
func (q Query) String() string {
	if q.Event != (EventID{}) {
		return "event " + q.Event.String()
	}
	s := fmt.Sprintf("publish of gateway %s, lane %d, number %d", q.Gateway, q.Lane, q.Number)
	if q.Epoch != nil {
		s += ", epoch " + hex.EncodeToString(q.Epoch[:])
	}
	return s
}

// matches reports whether q asks for it.
func (q Query) matches(it Item) bool {
	if q.Event != (EventID{}) {
		switch {
		case it.Row != nil:
			return it.Row.ID == q.Event
		case it.Window != nil:
			return it.Window.ID == q.Event
		}
		return it.Event.ID == q.Event
	}
	r := it.Row
	return r != nil && r.Gateway == q.Gateway && r.Lane == q.Lane && r.Number == q.Number && (q.Epoch == nil || r.Epoch == *q.Epoch)
}

// Prove finds the act in the log in dir and makes the bundle that CheckBundle verifies; it verifies the bundle itself before it gives
// it away. It reads the log from its start: there is no index that could differ from it. A publish that the gateway sent twice,
// because an acknowledgement was lost, is proven by its first row.
func Prove(dir, vkey string, q Query) (Bundle, error) {
	d := openDir(dir)
	signed, err := d.read(CheckpointFile, maxCheckpoint)
	if err != nil {
		return Bundle{}, fmt.Errorf("checkpoint: %w; expected the directory of a log", err)
	}
	cp, err := OpenCheckpoint(signed, vkey)
	if err != nil {
		return Bundle{}, err
	}
	found, err := d.search(cp.Size, q)
	if err != nil {
		return Bundle{}, err
	}
	b, err := d.prove(cp, found)
	if err != nil {
		return Bundle{}, fmt.Errorf("prove %s: %w; run `wardlink audit verify`", q, err)
	}
	b.Checkpoint = string(signed)
	data, err := b.Encode()
	if err != nil {
		return Bundle{}, err
	}
	if _, err := CheckBundle(data, vkey); err != nil {
		return Bundle{}, fmt.Errorf("prove %s: the log's own proof fails: %w; run `wardlink audit verify`", q, err)
	}
	return b, nil
}

// search finds the one item that q names. Windows are looked at before their rows, so that a window can be asked for by its id.
func (d logDir) search(size uint64, q Query) (Item, error) {
	var found []Item // the first of each epoch
	for index, e := range d.entries(size, false) {
		if e.err != nil {
			return Item{}, e.err
		}
		leaf, err := DecodeLeaf(e.leaf)
		if err != nil {
			return Item{}, fmt.Errorf("leaf %d: %w", index, err)
		}
		it := Item{Index: index, Event: leaf.Event, Window: leaf.Window}
		if q.matches(it) {
			return it, nil
		}
		if leaf.Window == nil {
			continue
		}
		var failed error
		d.yieldRows(index, *leaf.Window, false, func(it Item, err error) bool {
			if err != nil {
				failed = err
				return false
			}
			if q.matches(it) && !hasEpoch(found, it.Row.Epoch) && len(found) < maxEpochs {
				it.Window = leaf.Window
				found = append(found, it)
			}
			return true
		})
		if failed != nil {
			return Item{}, failed
		}
		// With the epoch named nothing later can change the answer; without it a later start of the gateway may have used the number.
		if len(found) > 0 && (q.Epoch != nil || q.Event != (EventID{})) {
			break
		}
	}
	switch len(found) {
	case 0:
		return Item{}, fmt.Errorf("%s: %w (%d leaves)", q, ErrNotLogged, size)
	case 1:
		return found[0], nil
	}
	epochs := make([]string, len(found))
	for i, it := range found {
		epochs[i] = hex.EncodeToString(it.Row.Epoch[:]) + " received " + stamp(it.Row.Received)
	}
	return Item{}, fmt.Errorf("%s: several starts of the gateway used this number; name the epoch:\n  %s", q, strings.Join(epochs, "\n  "))
}

// hasEpoch reports whether the first row of that epoch was found already.
func hasEpoch(items []Item, epoch [16]byte) bool {
	for _, it := range items {
		if it.Row.Epoch == epoch {
			return true
		}
	}
	return false
}

// prove makes the proofs for an item; its hashes come through tiles that are authenticated against cp.
func (d logDir) prove(cp Checkpoint, it Item) (Bundle, error) {
	b := Bundle{Version: bundleVersion, Index: it.Index, Summary: it.summary(cp)}
	proof, err := tlog.ProveRecord(int64(cp.Size), int64(it.Index), d.hashes(cp))
	if err != nil {
		return Bundle{}, err
	}
	b.Proof = rawProof(proof)
	n := it.Index / tileWidth
	leaves, err := d.bundle(n, int(min(cp.Size-n*tileWidth, tileWidth)))
	if err != nil {
		return Bundle{}, err
	}
	b.Leaf = leaves[it.Index%tileWidth]
	if it.Row == nil {
		return b, nil
	}
	hashes, err := d.rowHashes(*it.Window)
	if err != nil {
		return Bundle{}, err
	}
	rows, _, err := d.rows(*it.Window, hashes)
	if err != nil {
		return Bundle{}, err
	}
	b.Row = &BundleRow{Index: it.RowIndex, Row: rows[it.RowIndex], Proof: rawProof(treeProof(hashes, int(it.RowIndex)))}
	return b, nil
}

// summary says in words what the bundle proves.
func (it Item) summary(cp Checkpoint) map[string]string {
	s := map[string]string{"log": cp.Origin, "leaves": strconv.FormatUint(cp.Size, 10)}
	switch {
	case it.Row != nil:
		r := it.Row
		s["act"], s["gateway"], s["verdict"] = "publish", r.Gateway, r.Verdict
		s["epoch"], s["lane"], s["number"] = hex.EncodeToString(r.Epoch[:]), strconv.Itoa(int(r.Lane)), strconv.FormatUint(r.Number, 10)
		s["received"], s["frame_sha256"] = stamp(r.Received), hex.EncodeToString(r.Frame[:])
	case it.Window != nil:
		s["act"], s["rows"] = "window of publishes", strconv.FormatUint(it.Window.Count, 10)
	default:
		s["act"], s["actor"], s["outcome"] = string(it.Event.Type), it.Event.Actor.ID, string(it.Event.Outcome)
		s["time"] = stamp(it.Event.Time)
	}
	return s
}

// stamp is a time of the server's clock as people read it.
func stamp(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }
