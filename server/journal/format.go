package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

// Names inside a segment; FORMAT.md describes each.
const (
	bucketHeader  = "header"  // key keyHeader
	bucketCommits = "commits" // a nested bucket per commit, key: sequence number of its first entry
	keyHeader     = "h"
	keyEntries    = "e" // of a commit: its entries, packed
)

const (
	formatVersion = 1
	headerSize    = 1 + 4 + 4 + 8 + 4
	entryHead     = 16 + 1 + 4 + 4
	packHead      = 4 // count
	packTail      = 4 // CRC-32C
	summarySize   = headerSize + 3*8

	// MaxEntry is the most bytes that Head and Blob of an entry may have together.
	MaxEntry = 1 << 20
)

var errFormat = errors.New("not in the format of version 1")

// header stands in every segment from its first commit on.
type header struct {
	node, start uint32 // of the process that wrote it, as in its event ids
	first       uint64 // sequence number of the first entry it may hold
}

func (h header) encode() []byte {
	b := append(make([]byte, 0, headerSize), formatVersion)
	b = binary.BigEndian.AppendUint32(b, h.node)
	b = binary.BigEndian.AppendUint32(b, h.start)
	b = binary.BigEndian.AppendUint64(b, h.first)
	return binary.BigEndian.AppendUint32(b, segment.Checksum(b))
}

// newer reports a header, or what begins with one, that ends in its checksum and says that it is of a later version.
func newer(b []byte) error {
	if len(b) > 5 && b[0] > formatVersion && binary.BigEndian.Uint32(b[len(b)-4:]) == segment.Checksum(b[:len(b)-4]) {
		return fmt.Errorf("format version %d: %w", b[0], durable.ErrNewer)
	}
	return nil
}

func parseHeader(b []byte) (h header, err error) {
	if err := newer(b); err != nil {
		return h, err
	}
	if len(b) != headerSize || b[0] != formatVersion {
		return h, fmt.Errorf("header: %w", errFormat)
	}
	if binary.BigEndian.Uint32(b[headerSize-4:]) != segment.Checksum(b[:headerSize-4]) {
		return h, errors.New("header: checksum does not match")
	}
	h.node, h.start = binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint32(b[5:])
	h.first = binary.BigEndian.Uint64(b[9:])
	return h, nil
}

// summary ends a finished segment. last is first-1 when it holds nothing.
type summary struct {
	header header
	last   uint64
	bytes  uint64 // of heads and blobs
	closed int64  // Unix seconds, server's clock, when it was finished
}

func (s summary) encode() []byte {
	b := s.header.encode()
	for _, v := range []uint64{s.last, s.bytes, uint64(s.closed)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

// parseSummary reads what segment.Summary gave, whose checksum held: whatever the length, the first byte is the version.
func parseSummary(b []byte) (s summary, err error) {
	if len(b) > 0 && b[0] > formatVersion {
		return s, fmt.Errorf("format version %d: %w", b[0], durable.ErrNewer)
	}
	if len(b) != summarySize {
		return s, fmt.Errorf("summary: %w", errFormat)
	}
	if s.header, err = parseHeader(b[:headerSize]); err != nil {
		return s, err
	}
	b = b[headerSize:]
	s.last, s.bytes, s.closed = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), int64(binary.BigEndian.Uint64(b[16:]))
	return s, nil
}

// pack writes the entries of one commit as one value, over what is in b if it has room there. bbolt gives a large value its own pages; an entry
// of its own key each would be copied again with every neighbour that is added to its page.
func pack(b []byte, first uint64, entries []Entry) []byte {
	size := packHead + packTail
	for _, e := range entries {
		size += entryHead + len(e.Head) + len(e.Blob)
	}
	b = binary.BigEndian.AppendUint32(slices.Grow(b[:0], size), uint32(len(entries)))
	for _, e := range entries {
		b = append(append(b, e.ID[:]...), byte(e.Kind))
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Head)))
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Blob)))
		b = append(append(b, e.Head...), e.Blob...)
	}
	return binary.BigEndian.AppendUint32(b, packSum(first, b))
}

// Pack is the entries of one group as one value, for a store that gives them their numbers only when it takes them.
func Pack(entries []Entry) []byte { return pack(nil, 0, entries) }

// Unpack is the inverse of Pack for a group whose first number is first: it checks length and checksum, and calls fn for each entry in order
// until it returns false. Head and Blob alias b. An error is segment.ErrDamaged.
func Unpack(first uint64, b []byte, fn func(Entry) bool) (count uint64, err error) {
	return unpack(0, b, func(e Entry) bool {
		e.Seq += first
		return fn(e)
	})
}

// packSum binds a commit's content to its place in the sequence.
func packSum(first uint64, b []byte) uint32 {
	return segment.Checksum(binary.BigEndian.AppendUint64(nil, first), b)
}

// unpack checks a commit and calls fn for each entry in order until it returns false. Head and Blob alias b.
func unpack(first uint64, b []byte, fn func(Entry) bool) (count uint64, err error) {
	if len(b) < packHead+packTail {
		return 0, fmt.Errorf("%w: commit %d is cut off", segment.ErrDamaged, first)
	}
	body := b[:len(b)-packTail]
	if binary.BigEndian.Uint32(b[len(body):]) != packSum(first, body) {
		return 0, fmt.Errorf("%w: commit %d: checksum does not match", segment.ErrDamaged, first)
	}
	count = uint64(binary.BigEndian.Uint32(body))
	body = body[packHead:]
	going := true
	for i := range count {
		if len(body) < entryHead {
			return 0, fmt.Errorf("%w: commit %d has fewer entries than it says", segment.ErrDamaged, first)
		}
		e := Entry{Seq: first + i, Kind: Kind(body[16])}
		copy(e.ID[:], body)
		head, blob := uint64(binary.BigEndian.Uint32(body[17:])), uint64(binary.BigEndian.Uint32(body[21:]))
		body = body[entryHead:]
		if head+blob > uint64(len(body)) {
			return 0, fmt.Errorf("%w: commit %d: an entry is cut off", segment.ErrDamaged, first)
		}
		e.Head, e.Blob = body[:head:head], body[head:head+blob:head+blob]
		body = body[head+blob:]
		going = going && fn(e)
	}
	if len(body) != 0 || count == 0 {
		return 0, fmt.Errorf("%w: commit %d: entries and count differ", segment.ErrDamaged, first)
	}
	return count, nil
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// fileName is "<first sequence number, 16 hex digits>.seg".
func fileName(first uint64) string { return fmt.Sprintf("%016x.seg", first) }

func parseFileName(name string) (first uint64, ok bool) {
	base, ok := strings.CutSuffix(name, ".seg")
	if !ok || len(base) != 16 {
		return 0, false
	}
	first, err := strconv.ParseUint(base, 16, 64)
	return first, err == nil && fileName(first) == name
}

// cursors is the content of the A/B file: what each consumer has passed, and the start second that event ids were last made with.
type cursors struct {
	start uint32
	seqs  map[string]uint64
}

const maxCursors = 4 << 10

func (c cursors) encode(names []string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{formatVersion}, c.start)
	b = append(b, byte(len(names)))
	for _, name := range names {
		b = append(append(b, byte(len(name))), name...)
		b = binary.BigEndian.AppendUint64(b, c.seqs[name])
	}
	return b
}

func parseCursors(b []byte) (c cursors, err error) {
	if len(b) > 0 && b[0] > formatVersion { // the pair's checksum held
		return c, fmt.Errorf("cursors of version %d: %w", b[0], durable.ErrNewer)
	}
	if len(b) < 6 || b[0] != formatVersion {
		return c, fmt.Errorf("cursors: %w", errFormat)
	}
	c.start, c.seqs = binary.BigEndian.Uint32(b[1:]), map[string]uint64{}
	n := int(b[5])
	b = b[6:]
	for range n {
		if len(b) < 1 || len(b) < 1+int(b[0])+8 {
			return c, fmt.Errorf("cursors: %w", errFormat)
		}
		name := string(b[1 : 1+int(b[0])])
		b = b[1+len(name):]
		c.seqs[name] = binary.BigEndian.Uint64(b)
		b = b[8:]
	}
	if len(b) != 0 || len(c.seqs) != n {
		return c, fmt.Errorf("cursors: %w", errFormat)
	}
	return c, nil
}
