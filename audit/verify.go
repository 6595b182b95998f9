package audit

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// tailSpan is how much time, in milliseconds of the leaves' own clock, the leaves past the checkpoint may cover. The writer
// publishes every half second; a longer tail means that the checkpoint was put back to an older one, or that publishing stopped.
const tailSpan = 60_000

// tailPatience is how long a longer tail may take to be signed for, by a writer that is draining a backlog.
const tailPatience = 2 * time.Second

// maxFindings bounds a report of doubt; the rest is counted.
const maxFindings = 100

// Options of VerifyWith. The zero value is what Verify uses.
type Options struct {
	// Older holds signed checkpoints of the same log that were kept elsewhere. Each must be a state that this log went through.
	Older [][]byte
	// DetailSince is a time in Unix milliseconds: windows at or after it must have their rows on disk. 0 means that none must.
	DetailSince int64
}

// Report is what Verify found in a log without doubt. The first group is what the log's key signed, and only that is proven.
type Report struct {
	Origin   string
	Size     uint64 // leaves under the checkpoint
	Root     tlog.Hash
	Leaves   uint64 // leaves hashed; Size when there is no doubt
	Events   uint64
	Windows  uint64
	Rows     uint64 // rows of all windows
	Detailed uint64 // rows whose content is on disk too
	First    int64  // Unix milliseconds of the first leaf and of the latest; 0 when there is none
	Latest   int64

	// Leaves past the checkpoint: whoever can write the directory can put them there, so they are counted apart and prove nothing.
	Unpublished        uint64 // leaves that the writer has integrated and not yet signed for, by its own tree state
	UnpublishedEvents  uint64
	UnpublishedWindows uint64
	UnpublishedRows    uint64

	Pending uint64 // windows whose files lie ready and whose leaf is not in the log yet
	Strays  uint64 // other files between the windows: leftovers of an interrupted write
}

// DoubtError lists why a log does not prove what it says.
type DoubtError struct {
	Findings []string
	More     int // findings beyond those listed
}

func (e *DoubtError) Error() string {
	s := "the log does not verify:\n  " + strings.Join(e.Findings, "\n  ")
	if e.More > 0 {
		s += fmt.Sprintf("\n  and %d more", e.More)
	}
	return s
}

// Verify checks the log in dir with nothing but its public key: VerifyWith with no options.
func Verify(dir, vkey string) (Report, error) { return VerifyWith(dir, vkey, Options{}) }

// VerifyWith hashes every leaf of the log in dir again and compares the result with the signed checkpoint, the hash tiles, the older
// checkpoints and the writer's tree state where there is one; decodes every leaf; recomputes every window from its row hashes
// and every row hash from its row where it is kept. A doubt of any kind is a *DoubtError. The report is returned with it for what
// was counted so far, and proves nothing then.
//
// It may run beside the log's writer. Memory: 32 bytes a leaf, plus one window.
//
// BUG(rollback): a whole directory that was put back to a former state is a consistent log and verifies. Only a checkpoint kept
// elsewhere (Options.Older) shows it.
func VerifyWith(dir, vkey string, o Options) (Report, error) {
	v := &verifier{dir: openDir(dir), options: o}
	v.run(vkey)
	if len(v.doubt.Findings) > 0 {
		return v.report, &v.doubt
	}
	return v.report, nil
}

// verifier is one run of VerifyWith: a single pass over the leaves, and what must be remembered until its end.
type verifier struct {
	dir     logDir
	options Options
	cp      Checkpoint
	report  Report
	doubt   DoubtError

	tree   tree
	tiles  tileChecker
	roots  map[uint64][]expected // by tree size
	ids    []EventID
	ranges []window // journal ranges of the windows
	// The tail's clock: time of the leaves past the checkpoint.
	tailFirst, tailLatest int64
}

// window is what is remembered of a window: the journal range that no other may claim.
type window struct{ first, last uint64 }

// expected is a root that some file claims for a tree size.
type expected struct {
	source string
	root   tlog.Hash
}

// find notes a doubt. The verifier goes on: one finding may be the key to another.
func (v *verifier) find(format string, args ...any) {
	if len(v.doubt.Findings) == maxFindings {
		v.doubt.More++
		return
	}
	v.doubt.Findings = append(v.doubt.Findings, fmt.Sprintf(format, args...))
}

// run takes the checks in the order in which each can be trusted: without a signed checkpoint nothing else is looked at.
func (v *verifier) run(vkey string) {
	signed, err := v.dir.read(CheckpointFile, maxCheckpoint)
	if err != nil {
		v.find("checkpoint: %v; expected the directory of a log", err)
		return
	}
	if v.cp, err = OpenCheckpoint(signed, vkey); err != nil {
		v.find("%v", err)
		return
	}
	v.report.Origin, v.report.Size, v.report.Root = v.cp.Origin, v.cp.Size, v.cp.Root
	v.roots = map[uint64][]expected{v.cp.Size: {{"checkpoint", v.cp.Root}}}
	end := v.expectState()
	v.expectOlder(vkey)
	if !v.leaves(end) {
		return // without all leaves the rest would only repeat the finding
	}
	v.checkTail(vkey)
	v.checkIDs()
	v.checkWindowFiles()
}

// expectState adds the writer's tree state to what is expected and gives the size up to which leaves are read.
func (v *verifier) expectState() uint64 {
	state, ok, err := v.dir.state()
	switch {
	case err != nil:
		v.find("%v", err)
	case ok && state.Size < v.cp.Size:
		v.find("%s: the writer's tree has %d leaves, the checkpoint %d: one of them was put back", treeStateFile, state.Size, v.cp.Size)
	case ok:
		v.roots[state.Size] = append(v.roots[state.Size], expected{treeStateFile, tlog.Hash(state.Root)})
		v.report.Unpublished = state.Size - v.cp.Size
		return state.Size
	}
	return v.cp.Size
}

// expectOlder adds the checkpoints that were kept elsewhere. Since all leaves are hashed anyway, consistency needs no proof: the root at
// the older size is simply met on the way.
func (v *verifier) expectOlder(vkey string) {
	for i, signed := range v.options.Older {
		old, err := OpenCheckpoint(signed, vkey)
		if err != nil {
			v.find("older checkpoint %d: %v", i+1, err)
			continue
		}
		if old.Size > v.cp.Size {
			v.find("older checkpoint %d: it has %d leaves, the log %d: the log was put back", i+1, old.Size, v.cp.Size)
			continue
		}
		v.roots[old.Size] = append(v.roots[old.Size], expected{fmt.Sprintf("older checkpoint %d", i+1), old.Root})
	}
}

// leaves hashes and checks the first end leaves. It gives false when a bundle cannot be read, and nothing after it can be judged.
func (v *verifier) leaves(end uint64) bool {
	v.checkRoots()
	for v.tree.size < end {
		n := v.tree.size / tileWidth
		width := int(min(end-n*tileWidth, tileWidth))
		entries, err := v.dir.bundle(n, width)
		if err != nil {
			v.find("leaves from %d: %v", n*tileWidth, err)
			return false
		}
		for _, data := range entries {
			v.leaf(data)
		}
	}
	return true
}

// leaf takes the next leaf of the log.
func (v *verifier) leaf(data []byte) {
	index := v.tree.size
	hash := tlog.RecordHash(data)
	v.tree.add(hash)
	if index < v.cp.Size {
		v.report.Leaves++
		v.tiles.add(v, 0, hash)
		if v.tree.size == v.cp.Size {
			v.edge()
		}
	}
	v.checkRoots()
	leaf, err := DecodeLeaf(data)
	if err != nil {
		v.find("leaf %d: %v", index, err)
		return
	}
	v.ids = append(v.ids, leaf.ID())
	v.clock(index, leaf.Time())
	events, windows, rows := &v.report.Events, &v.report.Windows, &v.report.Rows
	if index >= v.cp.Size {
		events, windows, rows = &v.report.UnpublishedEvents, &v.report.UnpublishedWindows, &v.report.UnpublishedRows
	}
	if leaf.Window == nil {
		*events++
		return
	}
	*windows++
	*rows += leaf.Window.Count
	v.window(index, *leaf.Window)
}

// edge checks what only the right edge of the published tree has: its tiles, and its entry bundle when the leaves were read
// from a longer one.
func (v *verifier) edge() {
	v.tiles.finish(v)
	width := int(v.cp.Size % tileWidth)
	if width == 0 || v.report.Unpublished == 0 {
		return
	}
	n := v.cp.Size / tileWidth
	entries, err := v.dir.bundle(n, width)
	if err != nil {
		v.find("last leaves of the checkpoint: %v", err)
		return
	}
	edge := v.tiles.levels[0]
	for i, data := range entries {
		if hash := tlog.RecordHash(data); edge[i] != hash {
			v.find("leaf %d: two entry bundles hold different ones", n*tileWidth+uint64(i))
			return
		}
	}
}

// checkRoots compares the tree so far with all that claim to know its root at this size.
func (v *verifier) checkRoots() {
	for _, want := range v.roots[v.tree.size] {
		if got := v.tree.root(); got != want.root {
			v.find("%s: root of %d leaves is %s by it, and %s by the leaves", want.source, v.tree.size, want.root, got)
		}
	}
}

// clock follows the leaves' own times. They are the server's word and decide nothing but how long a tail may be.
func (v *verifier) clock(index uint64, ms int64) {
	if index >= v.cp.Size {
		if v.tailFirst == 0 || ms < v.tailFirst {
			v.tailFirst = ms
		}
		v.tailLatest = max(v.tailLatest, ms)
		return
	}
	if v.report.First == 0 {
		v.report.First = ms
	}
	v.report.Latest = max(v.report.Latest, ms)
}

// checkTail doubts a tail that covers much time, unless a writer at work, which has a backlog then, signs for more within seconds.
func (v *verifier) checkTail(vkey string) {
	if v.tailLatest-v.tailFirst <= tailSpan {
		return
	}
	for deadline := time.Now().Add(tailPatience); time.Now().Before(deadline); {
		signed, err := v.dir.read(CheckpointFile, maxCheckpoint)
		if err != nil {
			break
		}
		if cp, err := OpenCheckpoint(signed, vkey); err != nil {
			break
		} else if cp.Size > v.cp.Size {
			return
		}
		<-time.After(tailPatience / 20)
	}
	v.find("checkpoint: %d leaves after it cover %d s: it was put back, or publishing has stopped; if the server was killed, "+
		"start it once, and verify again", v.report.Unpublished, (v.tailLatest-v.tailFirst)/1000)
}

// window checks one window leaf against its files.
func (v *verifier) window(index uint64, w Window) {
	where := fmt.Sprintf("leaf %d: window over journal %d to %d", index, w.First, w.Last)
	v.ranges = append(v.ranges, window{w.First, w.Last})
	if want := WindowID(v.cp.Origin, w.First, w.Last); w.ID != want {
		v.find("%s: id %s does not follow from its range", where, w.ID)
	}
	hashes, err := v.dir.rowHashes(w)
	if err != nil {
		v.find("%s: %v", where, err)
		return
	}
	_, rows, err := v.dir.rows(w, hashes)
	switch {
	case err != nil && isNotExist(err):
		if v.options.DetailSince != 0 && w.Time >= v.options.DetailSince {
			v.find("%s: its rows are gone before their retention was over", where)
		}
		return
	case err != nil:
		v.find("%s: %v", where, err)
		return
	}
	if index < v.cp.Size {
		v.report.Detailed += uint64(len(rows))
	}
	seen := make(map[EventID]bool, len(rows))
	for _, r := range rows {
		if seen[r.ID] {
			v.find("%s: event id %s occurs twice", where, r.ID)
			return
		}
		seen[r.ID] = true
	}
}

// rowHashes reads the row hashes of w and compares their root with the leaf.
func (d logDir) rowHashes(w Window) ([]tlog.Hash, error) {
	data, err := d.windowFile(w.First, w.Last, RowsSuffix, MaxWindowRows*tlog.HashSize)
	if err != nil {
		return nil, fmt.Errorf("row hashes: %w", err)
	}
	hashes, err := parseRowHashes(data)
	if err != nil {
		return nil, err
	}
	if uint64(len(hashes)) != w.Count {
		return nil, fmt.Errorf("row hashes: %d on disk, %d in the leaf", len(hashes), w.Count)
	}
	if treeRoot(hashes) != w.Root {
		return nil, fmt.Errorf("row hashes: their root is not the leaf's")
	}
	return hashes, nil
}

// rows reads the rows of w and compares each with its hash. The error is fs.ErrNotExist when they were not kept.
func (d logDir) rows(w Window, hashes []tlog.Hash) (raw [][]byte, rows []Row, err error) {
	data, err := d.windowFile(w.First, w.Last, DetailSuffix, maxDetailFile)
	if err != nil {
		return nil, nil, fmt.Errorf("rows: %w", err)
	}
	raw, err = parseDetail(data)
	if err != nil {
		return nil, nil, err
	}
	if len(raw) != len(hashes) {
		return nil, nil, fmt.Errorf("rows: %d on disk, %d in the leaf", len(raw), len(hashes))
	}
	rows = make([]Row, len(raw))
	for i, data := range raw {
		if tlog.RecordHash(data) != hashes[i] {
			return nil, nil, fmt.Errorf("row %d: its hash is not the one in the log", i)
		}
		if rows[i], err = DecodeRow(data); err != nil {
			return nil, nil, fmt.Errorf("row %d: %w", i, err)
		}
	}
	return raw, rows, nil
}
