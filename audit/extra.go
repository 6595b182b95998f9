package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// The rule by which leaves and rows may grow. Verifiers live as long as the logs they read; a newer writer must not turn an older
// verifier's answer into doubt. So a leaf's keys from firstExtra on, and a row's elements past those that are known, are additions:
// they never change what the known fields mean, they are hashed with the rest, and who does not know them keeps and shows them.
const (
	firstExtra  = 32 // keys below it belong to this version of the format
	maxExtra    = 16 // additions to one leaf
	rowElements = 11
	maxElements = 23 // of a row, additions included
)

// Extra holds additions that this program does not know, as they stand in the log: keys and values of a leaf, elements of a row.
type Extra string

// String shows the additions in CBOR's diagnostic notation, one after the other.
func (x Extra) String() string {
	var all []string
	for rest := []byte(x); len(rest) > 0; {
		one, left, err := cbor.DiagnoseFirst(rest)
		if err != nil {
			return strings.Join(append(all, fmt.Sprintf("h'%x'", rest)), ", ")
		}
		all, rest = append(all, one), left
	}
	return strings.Join(all, ", ")
}

// decodeMap decodes a leaf's map into v: its known keys strictly, as decodeStrict has it, the others into extra. Values of additions
// need no deterministic encoding: the leaf's hash is over its bytes, and nobody encodes it again to check it.
func decodeMap[T any](data []byte) (v T, extra Extra, err error) {
	if err = decodeStrict(data, MaxLeaf, &v); err == nil {
		return v, "", nil
	}
	known, extra, ok := splitMap(data)
	if !ok {
		return v, "", err
	}
	var again T
	return again, extra, decodeStrict(known, MaxLeaf, &again)
}

// splitMap parts a map into one of its keys below firstExtra and the pairs from there on. ok is false when it has none of those, or is
// not a definite map whose keys up to its end are unsigned integers in ascending, shortest form.
func splitMap(data []byte) (known []byte, extra Extra, ok bool) {
	if len(data) > MaxLeaf || len(data) == 0 || data[0]>>5 != 5 {
		return nil, "", false
	}
	pairs, at, ok := readUint(data, 0)
	if !ok || pairs > 1<<10 {
		return nil, "", false
	}
	head, cut, kept := at, 0, uint64(0)
	var former uint64
	for i := range pairs {
		start := at
		if at == len(data) || data[at]>>5 != 0 {
			return nil, "", false
		}
		key, next, ok := readUint(data, at)
		if !ok || (i > 0 && key <= former) {
			return nil, "", false
		}
		var value cbor.RawMessage
		rest, err := extraMode.UnmarshalFirst(data[next:], &value)
		if err != nil {
			return nil, "", false
		}
		at, former = len(data)-len(rest), key
		if key >= firstExtra && cut == 0 {
			cut, kept = start, i
		}
	}
	if at != len(data) || cut == 0 || pairs-kept > maxExtra {
		return nil, "", false
	}
	return append(appendHead(nil, 5, kept), data[head:cut]...), Extra(data[cut:]), true
}

// splitRow parts an array of more than rowElements into its known elements, as an array, and the others.
func splitRow(data []byte) (known []byte, extra Extra, ok bool) {
	const array = 4 << 5
	if len(data) == 0 || len(data) > MaxRow || data[0] <= array+rowElements || data[0] > array+maxElements {
		return nil, "", false
	}
	cut, rest := 0, data[1:]
	for i := range int(data[0] - array) {
		if i == rowElements {
			cut = len(data) - len(rest)
		}
		var value cbor.RawMessage
		var err error
		if rest, err = extraMode.UnmarshalFirst(rest, &value); err != nil {
			return nil, "", false
		}
	}
	if len(rest) != 0 {
		return nil, "", false
	}
	return append([]byte{array + rowElements}, data[1:cut]...), Extra(data[cut:]), true
}

// withExtra puts additions behind the known pairs or elements that data holds: what a decoder kept is written as it was.
func withExtra(data []byte, extra Extra) ([]byte, error) {
	if extra == "" {
		return data, nil
	}
	n, rest := uint64(0), []byte(extra)
	for ; len(rest) > 0; n++ {
		var value cbor.RawMessage
		var err error
		if rest, err = extraMode.UnmarshalFirst(rest, &value); err != nil {
			return nil, fmt.Errorf("additions: %w", err)
		}
	}
	major := data[0] >> 5
	if major == 5 {
		if n%2 != 0 {
			return nil, errors.New("additions: a key without a value")
		}
		n /= 2
	}
	known, at, ok := readUint(data, 0)
	if !ok {
		return nil, errors.New("additions: the known fields have no head")
	}
	all := append(appendHead(nil, major, known+n), data[at:]...)
	return append(all, extra...), nil
}

// readUint reads the argument of the CBOR head at data[at:], which must be in its shortest form, and where the head ends.
func readUint(data []byte, at int) (n uint64, end int, ok bool) {
	if at >= len(data) {
		return 0, 0, false
	}
	short := data[at] & 31
	if short < 24 {
		return uint64(short), at + 1, true
	}
	if short > 27 {
		return 0, 0, false
	}
	size := 1 << (short - 24)
	if len(data)-at-1 < size {
		return 0, 0, false
	}
	var b [8]byte
	copy(b[8-size:], data[at+1:at+1+size])
	n = binary.BigEndian.Uint64(b[:])
	least := uint64(24)
	if size > 1 {
		least = 1 << (4 * size)
	}
	return n, at + 1 + size, n >= least
}

// appendHead writes the head of a CBOR data item in its shortest form (RFC 8949, 3 and 4.2.1).
func appendHead(dst []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n <= math.MaxUint8:
		return append(dst, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, major|27), n)
	}
}
