package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
)

// bbolt's file format, as far as the check needs it (version 2, little endian on every machine we build for). A page is a 16-byte
// head {id 8, flags 2, count 2, overflow 4} and count element heads: of a branch {position 4, key size 4, page id 8}, of a leaf
// {flags 4, position 4, key size 4, value size 4}; position counts from the element's own head. A bucket's value is {root page 8,
// sequence 8}, followed by a page of its own when root is 0. Pages 0 and 1 are meta pages; the valid one with the higher
// transaction id counts.
const (
	boltMagic    = 0xED0CDAED
	boltVersion  = 2
	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagBucket   = 0x01 // of a leaf's element
	pageHead     = 16
	elementHead  = 16
	metaChecksum = 56   // offset of the checksum within the meta body
	maxDepth     = 24   // of pages and buckets below each other; a segment of 64 MB needs 6
	maxRunPages  = 8192 // 32 MB: no value is longer
)

// Info is what the check of a file's structure found.
type Info struct {
	Used  int64 // bytes from the start that bbolt uses
	Trail int64 // bytes after them
	// Meta says how many of the two meta pages verify. With 1, the last commit may have been torn - which a crash in the middle of
	// a commit explains, and then nothing acknowledged is missing - or its page was damaged later, and then one commit is missing.
	Meta int
	Keys int // keys and buckets at all levels
}

// Inspect checks a file's whole page structure by plain reads: every page reachable exactly once, within the file, of the right
// kind, its elements inside it, in order, and where the branches above say. After it, bbolt can walk the file without panicking. It reads all used pages once.
func Inspect(path string) (Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return Info{}, fmt.Errorf("open segment: %w", err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return Info{}, fmt.Errorf("open segment: %w", err)
	}
	info, err := inspect(f, stat.Size())
	if err != nil {
		return info, fmt.Errorf("segment %s: %w", path, err)
	}
	return info, nil
}

// meta is the part of a meta page that matters.
type meta struct{ root, high, txid uint64 }

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

func inspect(r io.ReaderAt, size int64) (Info, error) {
	m, valid, err := readMeta(r, size)
	if err != nil {
		return Info{Meta: valid}, err
	}
	info := Info{Meta: valid, Used: int64(m.high) * PageSize}
	info.Trail = size - info.Used
	if info.Trail < 0 {
		return info, damaged("%d bytes of %d are there", size, info.Used)
	}
	w := &walker{r: r, high: m.high, seen: make([]uint64, m.high/64+1)}
	if err := w.page(child{id: m.root}, 0); err != nil {
		return info, err
	}
	info.Keys = w.keys
	return info, nil
}

// readMeta finds the meta page that bbolt will use.
func readMeta(r io.ReaderAt, size int64) (m meta, valid int, err error) {
	if size < 4*PageSize {
		return m, 0, damaged("%d bytes are less than an empty segment's", size)
	}
	buf := make([]byte, 2*PageSize)
	if _, err := r.ReadAt(buf, 0); err != nil {
		return m, 0, readError(err)
	}
	for id := range uint64(2) {
		got, ok := parseMeta(buf[id*PageSize:][:PageSize], id)
		if !ok {
			continue
		}
		if valid == 0 || got.txid > m.txid {
			m = got
		}
		valid++
	}
	if valid == 0 {
		return m, 0, damaged("neither meta page verifies")
	}
	if m.high < 3 || m.high > uint64(size/PageSize) || m.root < 2 || m.root >= m.high {
		return m, valid, damaged("meta page points outside of the file's %d bytes", size)
	}
	return m, valid, nil
}

func parseMeta(page []byte, id uint64) (m meta, ok bool) {
	if binary.LittleEndian.Uint16(page[8:]) != flagMeta || binary.LittleEndian.Uint64(page) != id {
		return m, false
	}
	b := page[pageHead:]
	sum := fnv.New64a()
	sum.Write(b[:metaChecksum])
	ok = binary.LittleEndian.Uint32(b) == boltMagic && binary.LittleEndian.Uint32(b[4:]) == boltVersion &&
		binary.LittleEndian.Uint32(b[8:]) == PageSize && binary.LittleEndian.Uint64(b[metaChecksum:]) == sum.Sum64()
	m.root = binary.LittleEndian.Uint64(b[16:])
	m.high = binary.LittleEndian.Uint64(b[40:])
	m.txid = binary.LittleEndian.Uint64(b[48:])
	return m, ok
}

// readError tells a file that is too short, which is damage, from a disk that does not answer, which may pass.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("the file is cut off")
	}
	return fmt.Errorf("read segment: %w", err)
}

// walker visits each page once. Its memory is one bit a page, plus the pages of one path.
type walker struct {
	r    io.ReaderAt
	high uint64
	seen []uint64
	keys int
}

// mark notes that a run of pages is in use, and refuses one that is outside of the file or was there before: a cycle would be
// endless recursion in bbolt.
func (w *walker) mark(id, count uint64) error {
	if id < 2 || count > maxRunPages || id+count > w.high {
		return damaged("page %d lies outside of the file", id)
	}
	for p := id; p < id+count; p++ {
		if w.seen[p/64]&(1<<(p%64)) != 0 {
			return damaged("page %d is used twice", p)
		}
		w.seen[p/64] |= 1 << (p % 64)
	}
	return nil
}

// child is a page that another one points to, with what that says of its keys: none is before low, and all are before high; nil is no bound. A key
// outside is met by whoever goes through all, and not found by whoever seeks it.
type child struct {
	id        uint64
	low, high []byte
}

// page checks a page and all below it.
func (w *walker) page(c child, depth int) error {
	id := c.id
	if depth > maxDepth {
		return damaged("page %d lies %d levels deep", id, depth)
	}
	if id < 2 || id >= w.high {
		return damaged("page %d lies outside of the file", id)
	}
	var head [pageHead]byte
	if _, err := w.r.ReadAt(head[:], int64(id)*PageSize); err != nil {
		return readError(err)
	}
	if got := binary.LittleEndian.Uint64(head[:]); got != id {
		return damaged("page %d says it is %d", id, got)
	}
	run := uint64(binary.LittleEndian.Uint32(head[12:])) + 1
	if err := w.mark(id, run); err != nil {
		return err
	}
	buf := make([]byte, run*PageSize)
	if _, err := w.r.ReadAt(buf, int64(id)*PageSize); err != nil {
		return readError(err)
	}
	children, err := w.elements(buf, c, depth)
	if err != nil {
		return err
	}
	for _, below := range children {
		if err := w.page(below, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// elements checks one page's elements and returns the pages it points to. The id is only for messages: an inline page has its parent's.
func (w *walker) elements(buf []byte, c child, depth int) (children []child, err error) {
	id := c.id
	flags, count := binary.LittleEndian.Uint16(buf[8:]), int(binary.LittleEndian.Uint16(buf[10:]))
	if flags != flagBranch && flags != flagLeaf || count == 0xFFFF {
		return nil, damaged("page %d is of unknown kind %#x", id, flags)
	}
	if flags == flagBranch && count == 0 || pageHead+count*elementHead > len(buf) {
		return nil, damaged("page %d cannot have %d elements", id, count)
	}
	var former []byte
	for i := range count {
		at := pageHead + i*elementHead
		e := buf[at:][:elementHead]
		var key, value []byte
		if flags == flagBranch {
			key, _, err = span(buf, at, e, binary.LittleEndian.Uint32(e[4:]), 0)
			if i > 0 {
				children[i-1].high = key
			}
			children = append(children, child{binary.LittleEndian.Uint64(e[8:]), key, c.high})
		} else {
			e = e[4:]
			key, value, err = span(buf, at, e, binary.LittleEndian.Uint32(e[4:]), binary.LittleEndian.Uint32(e[8:]))
		}
		if err != nil {
			return nil, fmt.Errorf("page %d: %w", id, err)
		}
		if i > 0 && bytes.Compare(former, key) >= 0 {
			return nil, damaged("page %d: keys are out of order", id)
		}
		if bytes.Compare(key, c.low) < 0 || c.high != nil && bytes.Compare(key, c.high) >= 0 {
			return nil, damaged("page %d: a key is where nobody seeks it", id)
		}
		former = key
		w.keys++
		if flags == flagLeaf {
			root, err := w.value(binary.LittleEndian.Uint32(buf[at:]), value, id, depth)
			if err != nil {
				return nil, err
			}
			if root != 0 {
				children = append(children, child{id: root})
			}
		}
	}
	return slices.Clip(children), nil
}

// span finds an element's key and value; position is counted from the element's head at offset at.
func span(buf []byte, at int, e []byte, key, value uint32) (k, v []byte, err error) {
	start := uint64(at) + uint64(binary.LittleEndian.Uint32(e))
	end := start + uint64(key) + uint64(value)
	if start < pageHead || end > uint64(len(buf)) {
		return nil, nil, damaged("an element lies outside of its page")
	}
	return buf[start : start+uint64(key)], buf[start+uint64(key) : end], nil
}

// value checks what a leaf's element holds: nothing more to see, or a bucket, whose root page is returned, or an inline one.
func (w *walker) value(flags uint32, value []byte, id uint64, depth int) (root uint64, err error) {
	switch {
	case flags == 0:
		return 0, nil
	case flags != flagBucket || len(value) < 16:
		return 0, damaged("page %d: an element of unknown kind %#x", id, flags)
	}
	if root = binary.LittleEndian.Uint64(value); root != 0 {
		return root, nil
	}
	inline := value[16:]
	if len(inline) < pageHead || binary.LittleEndian.Uint16(inline[8:]) != flagLeaf || depth > maxDepth {
		return 0, damaged("page %d: an inline bucket does not verify", id)
	}
	children, err := w.elements(inline, child{id: id}, depth+1)
	if err == nil && len(children) > 0 {
		err = damaged("page %d: an inline bucket holds a bucket", id)
	}
	return 0, err
}
