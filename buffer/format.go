package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

// Names inside a segment; FORMAT.md describes each.
const (
	bucketHeader   = "header"   // key keyHeader
	bucketBatches  = "batches"  // a nested bucket per batch, key: number
	bucketSealings = "sealings" // key: sealing id
	keyHeader      = "h"
	keyMeta        = "m" // of a batch: number, sealing id, lengths, checksum
	keySeen        = "s" // of a batch: the messages in it
	keyFrame       = "z" // of a batch: the frame; sorts last, so that the small values share its first page
)

const (
	formatVersion = 1
	headerSize    = 1 + 1 + 16 + 8 + 8 + 8 + 8 + 4 + 16 + 8 + 4
	batchMetaSize = 8 + 16 + 4 + 4 + 4
	seenSize      = 32 + 4 + 1
)

var errFormat = errors.New("not in the format of version 1")

// header stands in every segment from its first commit on.
type header struct {
	lane  uint8
	epoch [16]byte
	seq   uint64 // of the segment within its lane, from 1
	first uint64 // the least number the segment may hold
	// What the lane's earlier segments hold together, so that a damaged one is counted from its successor: its batches are
	// successor.batches - own.batches (when doubt is 0), its numbers lie in own.first .. successor.formerNext-1.
	batches, bytes uint64
	doubt          uint32   // batches of a failed commit that the segment before may hold or not
	formerEpoch    [16]byte // of the segment before; zero for the first
	formerNext     uint64   // 1 more than the greatest number given to the segment before
}

func (h header) encode() []byte {
	b := append(make([]byte, 0, headerSize), formatVersion, h.lane)
	b = append(b, h.epoch[:]...)
	b = binary.BigEndian.AppendUint64(b, h.seq)
	b = binary.BigEndian.AppendUint64(b, h.first)
	b = binary.BigEndian.AppendUint64(b, h.batches)
	b = binary.BigEndian.AppendUint64(b, h.bytes)
	b = binary.BigEndian.AppendUint32(b, h.doubt)
	b = append(b, h.formerEpoch[:]...)
	b = binary.BigEndian.AppendUint64(b, h.formerNext)
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
	h.lane = b[1]
	copy(h.epoch[:], b[2:])
	h.seq = binary.BigEndian.Uint64(b[18:])
	h.first = binary.BigEndian.Uint64(b[26:])
	h.batches = binary.BigEndian.Uint64(b[34:])
	h.bytes = binary.BigEndian.Uint64(b[42:])
	h.doubt = binary.BigEndian.Uint32(b[50:])
	copy(h.formerEpoch[:], b[54:])
	h.formerNext = binary.BigEndian.Uint64(b[70:])
	return h, nil
}

// encodeSeen is 37 bytes a message: digest, copy, mask.
func encodeSeen(seen []Seen) []byte {
	b := make([]byte, 0, len(seen)*seenSize)
	for _, s := range seen {
		b = append(b, s.Digest[:]...)
		b = binary.BigEndian.AppendUint32(b, s.Copy)
		b = append(b, s.Mask)
	}
	return b
}

// eachSeen calls fn for the messages of a batch; raw's length was checked with its meta.
func eachSeen(raw []byte, fn func(Seen)) {
	for ; len(raw) >= seenSize; raw = raw[seenSize:] {
		s := Seen{Copy: binary.BigEndian.Uint32(raw[32:]), Mask: raw[36]}
		copy(s.Digest[:], raw)
		fn(s)
	}
}

// encodeMeta binds a batch's parts to its id: a flipped bit anywhere, its key included, does not go unnoticed.
func encodeMeta(h header, number uint64, sealing [16]byte, seen, frame []byte) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, batchMetaSize), number)
	b = append(b, sealing[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(seen)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(frame)))
	return binary.BigEndian.AppendUint32(b, metaSum(h, b, seen, frame))
}

func metaSum(h header, b, seen, frame []byte) uint32 {
	return segment.Checksum([]byte{h.lane}, h.epoch[:], b[:batchMetaSize-4], seen, frame)
}

// parseBatch checks the three values of a batch against each other and its key.
func parseBatch(h header, key, b, seen, frame []byte) (sealing [16]byte, err error) {
	if len(b) != batchMetaSize || len(key) != 8 || string(b[:8]) != string(key) {
		return sealing, fmt.Errorf("batch: %w", errFormat)
	}
	if uint64(len(seen)) != uint64(binary.BigEndian.Uint32(b[24:])) || len(seen)%seenSize != 0 ||
		uint64(len(frame)) != uint64(binary.BigEndian.Uint32(b[28:])) {
		return sealing, errors.New("batch: lengths do not match")
	}
	if binary.BigEndian.Uint32(b[batchMetaSize-4:]) != metaSum(h, b, seen, frame) {
		return sealing, errors.New("batch: checksum does not match")
	}
	copy(sealing[:], b[8:])
	return sealing, nil
}

func numberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// A sealing record is followed by its CRC-32C.
func encodeRecord(id [16]byte, record []byte) []byte {
	b := append(make([]byte, 0, len(record)+4), record...)
	return binary.BigEndian.AppendUint32(b, segment.Checksum(id[:], record))
}

func parseRecord(id, b []byte) ([]byte, error) {
	if len(id) != 16 || len(b) < 4 {
		return nil, fmt.Errorf("sealing record: %w", errFormat)
	}
	record := b[:len(b)-4]
	if binary.BigEndian.Uint32(b[len(b)-4:]) != segment.Checksum(id, record) {
		return nil, errors.New("sealing record: checksum does not match")
	}
	return record, nil
}

// summary ends a finished segment, so that a start need not read the segment itself.
type summary struct {
	header      header
	count       uint64 // batches
	first, last uint64 // numbers; meaningless when count is 0
	bytes       uint64 // of frames
	seen        uint64 // messages
	sealings    [][16]byte
	filter      []byte // in memory only as long as it is not in the file: see seg.fine
}

func (s summary) encode() []byte {
	b := s.header.encode()
	for _, v := range []uint64{s.count, s.first, s.last, s.bytes, s.seen} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.sealings)))
	for _, id := range s.sealings {
		b = append(b, id[:]...)
	}
	return append(b, s.filter...)
}

// parseSummary reads what segment.Summary gave, whose checksum held: whatever the length, the first byte is the version. The filter lies in b.
func parseSummary(b []byte) (s summary, err error) {
	if len(b) > 0 && b[0] > formatVersion {
		return s, fmt.Errorf("format version %d: %w", b[0], durable.ErrNewer)
	}
	if len(b) < headerSize+5*8+4 {
		return s, fmt.Errorf("summary: %w", errFormat)
	}
	if s.header, err = parseHeader(b[:headerSize]); err != nil {
		return s, err
	}
	b = b[headerSize:]
	for i, v := range []*uint64{&s.count, &s.first, &s.last, &s.bytes, &s.seen} {
		*v = binary.BigEndian.Uint64(b[8*i:])
	}
	n := uint64(binary.BigEndian.Uint32(b[40:]))
	b = b[44:]
	if n > uint64(len(b)/16) {
		return s, fmt.Errorf("summary: %w", errFormat)
	}
	s.sealings = make([][16]byte, n)
	for i := range s.sealings {
		copy(s.sealings[i][:], b[16*i:])
	}
	s.filter = b[16*n:]
	if len(s.filter) == 0 || len(s.filter)&(len(s.filter)-1) != 0 || len(s.filter) > filterBytes {
		return s, fmt.Errorf("summary: %w", errFormat)
	}
	return s, nil
}

// fileName is "<lane>-<sequence, 16 hex digits>.seg": lane and order are known even of a file that cannot be read.
func fileName(lane string, seq uint64) string { return fmt.Sprintf("%s-%016x.seg", lane, seq) }

func parseFileName(name string) (lane string, seq uint64, ok bool) {
	base, ok := strings.CutSuffix(name, ".seg")
	i := strings.LastIndexByte(base, '-')
	if !ok || i < 1 || len(base)-i-1 != 16 {
		return "", 0, false
	}
	seq, err := strconv.ParseUint(base[i+1:], 16, 64)
	return base[:i], seq, err == nil && fileName(base[:i], seq) == name
}
