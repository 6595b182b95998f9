package audit

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const testOrigin = "ward.example/log/1"

// maker writes a log's directory by the text of FORMAT.md alone, without the writer's code: also logs that no writer of ours would
// make, signed all the same.
type maker struct {
	t      *testing.T
	dir    string
	vkey   string
	signer note.Signer
	leaves [][]byte
	pos    uint64 // last journal position used
}

func newMaker(t *testing.T) *maker {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return &maker{t: t, dir: t.TempDir(), vkey: vkey, signer: signer}
}

func testID(n uint64) EventID {
	id := EventID{0, 0, 0, 7}
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

func testEvent(n uint64) Event {
	return Event{
		ID: testID(n), Type: SessionOpened, Time: 1_700_000_000_000 + int64(n), Outcome: Success,
		Actor: Actor{ID: "spiffe://ward.example/gateway/gw-1", Serial: "0a"}, Peer: "192.0.2.7:40000",
		Detail: map[string]string{"n": strconv.FormatUint(n, 10)},
	}
}

func testRow(n uint64) Row {
	return Row{
		ID: testID(n), Session: testID(1), Gateway: "gw-1", Epoch: [16]byte{1}, Lane: 1, Number: n,
		Frame: sha256.Sum256(binary.BigEndian.AppendUint64(nil, n)), Received: 1_700_000_000_000 + int64(n), Serial: "0a",
		Peer: "192.0.2.7:40000", Verdict: "accepted",
	}
}

func (m *maker) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *maker) leaf(data []byte, err error) {
	m.t.Helper()
	m.must(err)
	m.leaves = append(m.leaves, data)
}

// event adds an event at the next journal position.
func (m *maker) event() {
	m.t.Helper()
	m.pos++
	m.leaf(EncodeEvent(testEvent(m.pos)))
}

// window adds a window over the next n journal positions and gives it; change may alter its rows first.
func (m *maker) window(n int, change ...func(i int, r *Row)) Window {
	m.t.Helper()
	first := m.pos + 1
	var rows [][]byte
	var received int64
	for i := range n {
		m.pos++
		r := testRow(m.pos)
		for _, c := range change {
			c(i, &r)
		}
		data, err := EncodeRow(r)
		m.must(err)
		rows, received = append(rows, data), r.Received
	}
	w, hashes, err := NewWindow(testOrigin, first, m.pos, received, rows)
	m.must(err)
	var detail []byte
	for _, r := range rows {
		detail = append(detail, r...)
	}
	m.put(WindowFile(first, m.pos, RowsSuffix), AppendRowHashes(nil, hashes))
	m.put(WindowFile(first, m.pos, DetailSuffix), detail)
	m.leaf(EncodeWindow(w))
	return w
}

func (m *maker) put(name string, data []byte) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	m.must(os.MkdirAll(filepath.Dir(path), 0o755))
	m.must(os.WriteFile(path, data, 0o644))
}

// publish writes bundles, tiles and the checkpoint over all leaves, with extra leaves integrated and not signed for.
func (m *maker) publish(extra ...[]byte) []byte {
	m.t.Helper()
	m.tiles(m.leaves)
	root := m.root(m.leaves)
	all := append(append([][]byte{}, m.leaves...), extra...)
	m.tiles(all)
	allRoot := m.root(all)
	state, err := json.Marshal(map[string]any{"size": len(all), "root": allRoot[:]})
	m.must(err)
	m.put(".state/treeState", state)
	return m.sign(uint64(len(m.leaves)), root)
}

func (m *maker) root(leaves [][]byte) tlog.Hash {
	hashes := make([]tlog.Hash, len(leaves))
	for i, l := range leaves {
		hashes[i] = tlog.RecordHash(l)
	}
	return treeRoot(hashes)
}

func (m *maker) sign(size uint64, root tlog.Hash) []byte {
	m.t.Helper()
	signed, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n", testOrigin, size, root)}, m.signer)
	m.must(err)
	m.put(CheckpointFile, signed)
	return signed
}

func (m *maker) tiles(leaves [][]byte) {
	m.t.Helper()
	var level []tlog.Hash
	for _, l := range leaves {
		level = append(level, tlog.RecordHash(l))
	}
	for from := 0; from < len(leaves); from += 256 {
		part := leaves[from:min(from+256, len(leaves))]
		var data []byte
		for _, l := range part {
			data = append(binary.BigEndian.AppendUint16(data, uint16(len(l))), l...)
		}
		m.put("tile/entries/"+partName(from/256, len(part)), data)
	}
	for n := 0; len(level) > 0; n++ {
		var above []tlog.Hash
		for from := 0; from < len(level); from += 256 {
			part := level[from:min(from+256, len(level))]
			m.put(fmt.Sprintf("tile/%d/%s", n, partName(from/256, len(part))), AppendRowHashes(nil, part))
			if len(part) == 256 {
				above = append(above, treeRoot(part))
			}
		}
		level = above
	}
}

func partName(n, width int) string {
	if width == 256 {
		return tileIndex(uint64(n))
	}
	return fmt.Sprintf("%s.p/%d", tileIndex(uint64(n)), width)
}
