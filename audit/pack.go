package audit

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// A pack holds the files of one suffix of all windows that begin within one directory's 4,096 positions; see FORMAT.md. Two hundred
// thousand small files a day cost more in file system blocks than in bytes.
const (
	packSuffix  = ".pack"
	packMagic   = "wardlink windows 1\n"
	packEntry   = 8 + 8 + 4
	packWindows = 1 << packBits
	packBits    = 12

	// The windows of a directory do not overlap, so all but the last have no more rows than positions before the next directory.
	maxPackRaw  = (packWindows + MaxWindowRows) * MaxRow
	maxPackFile = maxPackRaw + 1<<20 // what deflate cannot compress it stores
)

// Packed is one window's file within a pack.
type Packed struct {
	First, Last uint64 // the window's journal range
	Data        []byte // what WindowFile holds otherwise
}

// PackFile names the pack of the windows that begin in the same directory as one over first, relative to the log's directory.
func PackFile(first uint64, suffix string) string {
	f := fmt.Sprintf("%016x", first)
	return filepath.Join(WindowsDir, f[:10], f[10:13]+suffix+packSuffix)
}

// parsePackFile reads the last two elements of a PackFile name: the first position that the pack may hold.
func parsePackFile(parent, name string) (first uint64, suffix string, ok bool) {
	base, ok := strings.CutSuffix(name, packSuffix)
	if !ok {
		return 0, "", false
	}
	suffix = filepath.Ext(base)
	n, err := strconv.ParseUint(parent+strings.TrimSuffix(base, suffix), 16, 64)
	if err != nil || n > math.MaxUint64>>packBits {
		return 0, "", false
	}
	first = n << packBits
	return first, suffix, (suffix == RowsSuffix || suffix == DetailSuffix) && PackFile(first, suffix) == filepath.Join(WindowsDir, parent, name)
}

// EncodePack gives a pack's content. Windows ascend, do not overlap, and begin in one directory.
func EncodePack(windows []Packed) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(packMagic)
	b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(windows))))
	for _, w := range windows {
		b.Write(binary.BigEndian.AppendUint64(nil, w.First))
		b.Write(binary.BigEndian.AppendUint64(nil, w.Last))
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(w.Data))))
	}
	f, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		return nil, err
	}
	for _, w := range windows {
		if _, err := f.Write(w.Data); err != nil {
			return nil, err
		}
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if len(windows) == 0 {
		return nil, errors.New("pack: no windows")
	}
	if _, err := DecodePack(b.Bytes(), windows[0].First); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// DecodePack reads a pack whose windows begin in the directory that covers position first. The bytes are untrusted: the index is
// checked and its lengths are bounded before anything is inflated, and exactly what it says must come.
func DecodePack(data []byte, first uint64) ([]Packed, error) {
	rest, ok := bytes.CutPrefix(data, []byte(packMagic))
	if !ok || len(rest) < 4 {
		return nil, errors.New("pack: not of version 1")
	}
	count := int(binary.BigEndian.Uint32(rest))
	rest = rest[4:]
	if count == 0 || count > packWindows || len(rest) < count*packEntry {
		return nil, fmt.Errorf("pack: %d windows; expected 1 to %d, and all in its index", count, packWindows)
	}
	out, raw := make([]Packed, count), 0
	sizes := make([]int, count)
	for i := range out {
		e := rest[i*packEntry:]
		w := &out[i]
		w.First, w.Last = binary.BigEndian.Uint64(e), binary.BigEndian.Uint64(e[8:])
		sizes[i] = int(binary.BigEndian.Uint32(e[16:]))
		if w.First>>packBits != first>>packBits || w.Last < w.First || i > 0 && w.First <= out[i-1].Last {
			return nil, fmt.Errorf("pack: window over journal %d to %d is out of place", w.First, w.Last)
		}
		if raw += sizes[i]; sizes[i] > maxDetailFile || raw > maxPackRaw {
			return nil, fmt.Errorf("pack: more than %d bytes of content", maxPackRaw)
		}
	}
	compressed := bytes.NewReader(rest[count*packEntry:])
	f := flate.NewReader(compressed)
	// One buffer for all, grown as the content comes: an index may claim much and hold nothing.
	content, err := io.ReadAll(io.LimitReader(f, int64(raw)+1))
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if len(content) != raw || compressed.Len() != 0 {
		return nil, errors.New("pack: its content is not as long as its index says")
	}
	for i, n := range sizes {
		out[i].Data, content = content[:n:n], content[n:]
	}
	return out, nil
}

// CheckWindow says whether a window's two files belong together: every row hashes to its place, no more and no less.
func CheckWindow(rows, detail []byte) error {
	hashes, err := parseRowHashes(rows)
	if err != nil {
		return err
	}
	raw, err := parseDetail(detail)
	if err != nil {
		return err
	}
	if len(raw) != len(hashes) {
		return fmt.Errorf("%d rows, %d hashes", len(raw), len(hashes))
	}
	for i, data := range raw {
		if tlog.RecordHash(data) != hashes[i] {
			return fmt.Errorf("row %d: its hash is another", i)
		}
	}
	return nil
}

// packs remembers the pack of each suffix that was read last: windows are met in their order.
type packs struct {
	name    map[string]string
	windows map[string][]Packed
}

// pack reads a pack, or fs.ErrNotExist.
func (d logDir) pack(first uint64, suffix string) ([]Packed, error) {
	name := PackFile(first, suffix)
	if d.packs.name[suffix] == name {
		return d.packs.windows[suffix], nil
	}
	data, err := d.read(name, maxPackFile)
	if err != nil {
		return nil, err
	}
	windows, err := DecodePack(data, first)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	d.packs.name[suffix], d.packs.windows[suffix] = name, windows
	return windows, nil
}

// windowFile reads a file of a window, by itself or from its pack. The writer makes the pack durable before it removes the file, so who
// does not find the one finds the other. The error is fs.ErrNotExist when there is neither.
func (d logDir) windowFile(first, last uint64, suffix string, limit int) ([]byte, error) {
	data, err := d.read(WindowFile(first, last, suffix), limit)
	if !isNotExist(err) {
		return data, err
	}
	windows, perr := d.pack(first, suffix)
	if perr != nil {
		if isNotExist(perr) {
			return nil, err
		}
		return nil, perr
	}
	for _, w := range windows {
		if w.First == first && w.Last == last {
			if len(w.Data) > limit {
				return nil, fmt.Errorf("%s: expected at most %d bytes of one window", PackFile(first, suffix), limit)
			}
			return w.Data, nil
		}
	}
	return nil, err
}
