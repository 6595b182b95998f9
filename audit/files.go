package audit

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/mod/sumdb/tlog"
)

// Names within a log's directory. The first three are C2SP tlog-tiles; the others are described in FORMAT.md.
const (
	CheckpointFile = "checkpoint"
	WindowsDir     = "windows"
	treeStateFile  = ".state/treeState"

	tileHeight = 8
	tileWidth  = 1 << tileHeight
	// maxBundle is 256 entries of the greatest length a bundle can express.
	maxBundle     = tileWidth * (2 + math.MaxUint16)
	maxDetailFile = MaxWindowRows * MaxRow
)

// WindowFile names the files of the window over the journal's publishes first to last, relative to the log's directory: the row
// hashes under RowsSuffix, the rows under DetailSuffix. One directory covers 4096 journal positions, the one above it 4096
// directories, so that none grows large and old ones can be removed whole.
func WindowFile(first, last uint64, suffix string) string {
	f := fmt.Sprintf("%016x", first)
	return filepath.Join(WindowsDir, f[:10], f[10:13], f+fmt.Sprintf("-%016x", last)+suffix)
}

// The two files of a window.
const (
	RowsSuffix   = ".rows"
	DetailSuffix = ".detail"
)

// ParseWindowFile reads the last element of a WindowFile name.
func ParseWindowFile(name string) (first, last uint64, suffix string, err error) {
	suffix = filepath.Ext(name)
	if suffix != RowsSuffix && suffix != DetailSuffix {
		return 0, 0, "", fmt.Errorf("window file %q: expected %s or %s", name, RowsSuffix, DetailSuffix)
	}
	a, b, _ := strings.Cut(strings.TrimSuffix(name, suffix), "-")
	first, err1 := strconv.ParseUint(a, 16, 64)
	last, err2 := strconv.ParseUint(b, 16, 64)
	if err1 != nil || err2 != nil || filepath.Base(WindowFile(first, last, suffix)) != name {
		return 0, 0, "", fmt.Errorf("window file %q: expected <16 hex digits>-<16 hex digits>%s", name, suffix)
	}
	return first, last, suffix, nil
}

// AppendRowHashes gives the content of a window's RowsSuffix file.
func AppendRowHashes(dst []byte, hashes []tlog.Hash) []byte {
	for _, h := range hashes {
		dst = append(dst, h[:]...)
	}
	return dst
}

// parseRowHashes reads a RowsSuffix file; the caller compares the root.
func parseRowHashes(data []byte) ([]tlog.Hash, error) {
	if len(data)%tlog.HashSize != 0 {
		return nil, fmt.Errorf("row hashes: %d bytes are not a multiple of %d", len(data), tlog.HashSize)
	}
	hashes := make([]tlog.Hash, len(data)/tlog.HashSize)
	for i := range hashes {
		hashes[i] = tlog.Hash(data[i*tlog.HashSize:])
	}
	return hashes, nil
}

// parseDetail splits a DetailSuffix file, a sequence of rows (RFC 8742), into at most MaxWindowRows of them.
func parseDetail(data []byte) ([][]byte, error) {
	var rows [][]byte
	for len(data) > 0 {
		if len(rows) == MaxWindowRows {
			return nil, fmt.Errorf("detail: more than %d rows", MaxWindowRows)
		}
		var row cbor.RawMessage // decoded later, once its hash is known to be right
		rest, err := extraMode.UnmarshalFirst(data[:min(len(data), MaxRow)], &row)
		if err != nil {
			return nil, fmt.Errorf("detail: row %d: %w", len(rows), err)
		}
		n := min(len(data), MaxRow) - len(rest)
		rows = append(rows, data[:n])
		data = data[n:]
	}
	return rows, nil
}

// parseBundle splits an entry bundle (C2SP tlog-tiles): each entry behind its length as 16 bits, big endian.
func parseBundle(data []byte) ([][]byte, error) {
	var entries [][]byte
	for len(data) > 0 {
		if len(entries) == tileWidth {
			return nil, fmt.Errorf("entry bundle: more than %d entries", tileWidth)
		}
		if len(data) < 2 || len(data)-2 < int(binary.BigEndian.Uint16(data)) {
			return nil, fmt.Errorf("entry bundle: cut off in entry %d", len(entries))
		}
		n := int(binary.BigEndian.Uint16(data))
		entries = append(entries, data[2:2+n])
		data = data[2+n:]
	}
	return entries, nil
}

// logDir reads the files of one log. All of it is untrusted; lengths are bounded before anything is allocated.
type logDir struct {
	path  string
	packs *packs
}

func openDir(dir string) logDir {
	return logDir{dir, &packs{name: map[string]string{}, windows: map[string][]Packed{}}}
}

// read gives a regular file of at most limit bytes. The size is asked first, so that a huge file costs nothing; the loop has its own
// bound, because the file may grow while it is read.
func (d logDir) read(name string, limit int) ([]byte, error) {
	f, err := os.Open(filepath.Join(d.path, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > int64(limit) {
		return nil, fmt.Errorf("%s: expected a file of at most %d bytes", name, limit)
	}
	data := make([]byte, 0, info.Size()+1)
	for len(data) <= limit {
		n, err := f.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
	}
	return nil, fmt.Errorf("%s: grew past %d bytes while it was read", name, limit)
}

// readPart reads a tile or bundle of width parts. One that is not full lies under ".p/<width>"; once the log has grown, that
// name may have been collected and the full one holds its parts first.
func (d logDir) readPart(name string, width, limit int) (data []byte, full bool, err error) {
	if width < tileWidth {
		data, err = d.read(name+".p/"+strconv.Itoa(width), limit)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, false, err
		}
	}
	data, err = d.read(name, limit)
	return data, true, err
}

// bundle reads the first width entries of entry bundle n.
func (d logDir) bundle(n uint64, width int) ([][]byte, error) {
	name := "tile/entries/" + tileIndex(n)
	data, full, err := d.readPart(name, width, maxBundle)
	if err != nil {
		return nil, fmt.Errorf("entry bundle: %w", err)
	}
	entries, err := parseBundle(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(entries) < width || (!full && len(entries) > width) || (full && len(entries) != tileWidth) {
		return nil, fmt.Errorf("%s: holds %d entries; expected %d", name, len(entries), width)
	}
	return entries[:width], nil
}

// tile reads the first width hashes of the tile at level and index n.
func (d logDir) tile(level int, n uint64, width int) ([]byte, error) {
	name := fmt.Sprintf("tile/%d/%s", level, tileIndex(n))
	data, full, err := d.readPart(name, width, tileWidth*tlog.HashSize)
	if err != nil {
		return nil, fmt.Errorf("hash tile: %w", err)
	}
	want := width * tlog.HashSize
	if len(data) < want || (!full && len(data) > want) || (full && len(data) != tileWidth*tlog.HashSize) {
		return nil, fmt.Errorf("%s: %d bytes; expected %d", name, len(data), want)
	}
	return data[:want], nil
}

// tileIndex is n in groups of three digits as C2SP tlog-tiles writes paths: x001/x234/067.
func tileIndex(n uint64) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	return s
}

// hashes reads the tree of cp by its tiles; every tile is authenticated against the root before a hash of it is used.
func (d logDir) hashes(cp Checkpoint) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: int64(cp.Size), Hash: cp.Root}, tileReader{d})
}

// tileReader gives tlog our tiles. It saves none: they are on disk already, and an auditor's copy is not ours to write.
type tileReader struct{ dir logDir }

func (tileReader) Height() int { return tileHeight }

func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, t := range tiles {
		var err error
		if out[i], err = r.dir.tile(t.L, uint64(t.N), t.W); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// treeState is what the log's writer has integrated, published or not.
type treeState struct {
	Size uint64 `json:"size"`
	Root []byte `json:"root"`
}

// state reads the writer's own file. ok is false when there is none: the copy that an auditor was given need not have it.
func (d logDir) state() (s treeState, ok bool, err error) {
	data, err := d.read(treeStateFile, 4<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err != nil {
		return s, false, err
	}
	if err := json.Unmarshal(data, &s); err != nil || len(s.Root) != tlog.HashSize || s.Size > math.MaxInt64 {
		return s, false, fmt.Errorf("%s: expected JSON with size and root", treeStateFile)
	}
	return s, true, nil
}

// Integrated is the tree that the log's writer has on disk, published or not, by the writer's own account. It is for that
// writer and proves nothing. The error is fs.ErrNotExist when there is no log.
func Integrated(dir string) (tlog.Tree, error) {
	s, ok, err := openDir(dir).state()
	if err != nil {
		return tlog.Tree{}, err
	}
	if !ok {
		return tlog.Tree{}, fmt.Errorf("%s: %w", filepath.Join(dir, treeStateFile), fs.ErrNotExist)
	}
	return tlog.Tree{N: int64(s.Size), Hash: tlog.Hash(s.Root)}, nil
}

// RootAt is the root that tree had when it held size leaves, by the hash tiles in dir; every tile used is authenticated against tree.
func RootAt(dir string, tree tlog.Tree, size uint64) (tlog.Hash, error) {
	switch {
	case size > uint64(tree.N):
		return tlog.Hash{}, fmt.Errorf("root of %d leaves: the log has %d", size, tree.N)
	case size == uint64(tree.N):
		return tree.Hash, nil
	case size == 0:
		return treeRoot(nil), nil
	}
	return tlog.TreeHash(int64(size), tlog.TileHashReader(tree, tileReader{openDir(dir)}))
}
