package telemetry

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

// inflateAll appends to out, which is empty, what data, one whole deflate stream (RFC 1951) and nothing after it, inflates to. It gives false for anything else, for more
// than MaxPlain bytes, and for the rare streams that it leaves to the standard library: which of these, inflate asks that library. So nothing is
// refused, or worded, here, and to be held against it there is only this: what inflateAll takes, the library takes, and inflates to the same
// (FuzzInflate).
//
// The library reads from a stream, byte by byte through an interface, and keeps a window of what it wrote; a batch is whole in memory on
// both sides, and small, so that most of what it cost to inflate one was that, and making the library's tables.
func inflateAll(out, data []byte) ([]byte, bool) {
	f := blocks.Get().(*inflater)
	defer blocks.Put(f)
	f.in, f.at, f.bits, f.held, f.failed = data, 0, 0, 0, false
	out = f.stream(out)
	ok := !f.failed && f.at-int(f.held)/8 == len(data)
	f.in = nil
	return out, ok
}

var blocks = sync.Pool{New: func() any { return new(inflater) }}

// inflater reads one stream. Once it failed it gives zeros.
type inflater struct {
	in     []byte
	at     int    // of in
	bits   uint64 // those of in before at that are not taken yet, the next one lowest; above held there may be those that follow
	held   uint   // how many of bits
	failed bool

	literals, distances, lengths prefixCode
	sizes                        [286 + 30]byte // of the codes of a block
}

// fill makes at least 56 bits held, or all that are left.
func (f *inflater) fill() {
	if len(f.in)-f.at >= 8 {
		f.bits |= binary.LittleEndian.Uint64(f.in[f.at:]) << f.held
		f.at += int(63-f.held) / 8
		f.held |= 56
		return
	}
	for f.held <= 56 && f.at < len(f.in) {
		f.bits |= uint64(f.in[f.at]) << f.held
		f.at++
		f.held += 8
	}
}

// take gives the next n bits, which must be held: at most 16 after a code of at most 15, after one fill.
func (f *inflater) take(n uint) int {
	if n > f.held {
		f.failed = true
		return 0
	}
	v := int(f.bits & (1<<n - 1))
	f.bits >>= n
	f.held -= n
	return v
}

// stream reads blocks until the last.
func (f *inflater) stream(out []byte) []byte {
	for last := 0; last == 0 && !f.failed; {
		f.fill()
		last = f.take(1)
		switch f.take(2) {
		case 0:
			out = f.stored(out)
		case 1:
			f.fixedCodes()
			out = f.block(out)
		case 2:
			f.dynamicCodes()
			out = f.block(out)
		default:
			f.failed = true
		}
	}
	return out
}

// stored copies a block that was not compressed; it begins at a byte.
func (f *inflater) stored(out []byte) []byte {
	f.take(f.held % 8)
	f.at -= int(f.held / 8)
	f.bits, f.held = 0, 0
	if f.failed || len(f.in)-f.at < 4 {
		f.failed = true
		return out
	}
	n, inverse := binary.LittleEndian.Uint16(f.in[f.at:]), binary.LittleEndian.Uint16(f.in[f.at+2:])
	f.at += 4
	if n != ^inverse || int(n) > len(f.in)-f.at || int(n) > MaxPlain-len(out) {
		f.failed = true
		return out
	}
	f.at += int(n)
	return append(out, f.in[f.at-int(n):f.at]...)
}

// fixedCodes are those of RFC 1951, 3.2.6. The symbols 286 and 287, and the distances 30 and 31, take part and stand for nothing.
func (f *inflater) fixedCodes() {
	var sizes [288]byte
	for i := range sizes {
		switch {
		case i < 144:
			sizes[i] = 8
		case i < 256:
			sizes[i] = 9
		case i < 280:
			sizes[i] = 7
		default:
			sizes[i] = 8
		}
	}
	f.literals.build(sizes[:])
	for i := range 32 {
		sizes[i] = 5
	}
	f.distances.build(sizes[:32])
}

// lengthOrder is in which order the lengths of the code of lengths stand.
var lengthOrder = [19]byte{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicCodes reads the codes of a block, which stand before it.
func (f *inflater) dynamicCodes() {
	literals, distances, n := f.take(5)+257, f.take(5)+1, f.take(4)+4
	if f.failed || literals > 286 || distances > 30 {
		f.failed = true
		return
	}
	var of [19]byte
	for _, symbol := range lengthOrder[:n] {
		f.fill()
		of[symbol] = byte(f.take(3))
	}
	if !f.lengths.build(of[:]) {
		f.failed = true
		return
	}
	all := f.sizes[:literals+distances]
	for i := 0; i < len(all) && !f.failed; {
		f.fill()
		symbol := f.symbol(&f.lengths)
		size, repeat := byte(0), 1
		switch {
		case symbol < 16:
			size = byte(symbol)
		case symbol == 16 && i > 0:
			size, repeat = all[i-1], 3+f.take(2)
		case symbol == 17:
			repeat = 3 + f.take(3)
		case symbol == 18:
			repeat = 11 + f.take(7)
		default:
			repeat = len(all) + 1
		}
		if repeat > len(all)-i {
			f.failed = true
			return
		}
		for range repeat {
			all[i] = size
			i++
		}
	}
	if f.failed || !f.literals.build(all[:literals]) || !f.distances.build(all[literals:]) {
		f.failed = true
	}
}

// What a symbol above 256 adds to a copy's length, and a distance's symbol to its distance: the least, and how many bits say how much more.
var (
	lengthBase = [29]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthBits = [29]byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}

	distanceBase = [30]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distanceBits = [30]byte{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
)

// block reads what a block's codes stand for. A length and a distance, with what more they say, are at most 15 + 5 + 15 + 13 bits.
func (f *inflater) block(out []byte) []byte {
	for !f.failed {
		f.fill()
		symbol := f.symbol(&f.literals)
		switch {
		case f.failed || len(out) >= MaxPlain && symbol != 256:
			f.failed = true
		case symbol < 256:
			out = append(out, byte(symbol))
		case symbol == 256:
			return out
		case symbol >= 286:
			f.failed = true
		default:
			length := int(lengthBase[symbol-257]) + f.take(uint(lengthBits[symbol-257]))
			by := f.symbol(&f.distances)
			if by >= 30 {
				f.failed = true
				break
			}
			distance := int(distanceBase[by]) + f.take(uint(distanceBits[by]))
			if f.failed || distance > len(out) || length > MaxPlain-len(out) {
				f.failed = true
				break
			}
			out = repeated(out, distance, length)
		}
	}
	return out
}

// repeated appends what begins distance bytes before the end; beyond the end it goes on with what it appended.
func repeated(out []byte, distance, length int) []byte {
	for from := len(out) - distance; length > 0; {
		n := min(length, len(out)-from)
		out = append(out, out[from:from+n]...)
		length -= n
	}
	return out
}

// prefixCode finds symbols by their codes. Those of at most shortCode bits stand in a table by the next bits; the few longer ones are found bit
// by bit, as the canonical order of codes allows.
type prefixCode struct {
	short   [1 << shortCode]uint16 // symbol<<4 | length of its code; 0: a longer code, or none
	count   [16]uint16             // codes by length
	symbols [288]uint16            // by their codes
}

const shortCode = 9

// build makes the code of which the lengths are given by symbol; 0 for a symbol that has none. It gives false unless each sequence of bits is
// the beginning of a code, or there is one code alone, of one bit.
func (c *prefixCode) build(lengths []byte) bool {
	c.count = [16]uint16{}
	for _, n := range lengths {
		c.count[n]++
	}
	unused := len(lengths) - int(c.count[0])
	c.count[0] = 0
	free := 1
	var next, at [16]uint16 // by length: the next code, and its place in symbols
	for n := 1; n < 16; n++ {
		next[n] = (next[n-1] + c.count[n-1]) << 1
		at[n] = at[n-1] + c.count[n-1]
		if free = free<<1 - int(c.count[n]); free < 0 {
			return false
		}
	}
	if free > 0 && !(unused == 1 && c.count[1] == 1) {
		return false
	}
	clear(c.short[:])
	for symbol, n := range lengths {
		if n == 0 {
			continue
		}
		c.symbols[at[n]] = uint16(symbol)
		at[n]++
		code := bits.Reverse16(next[n]) >> (16 - n) // the first bit of a code stands lowest
		next[n]++
		if n <= shortCode {
			for i := int(code); i < len(c.short); i += 1 << n {
				c.short[i] = uint16(symbol)<<4 | uint16(n)
			}
		}
	}
	return true
}

// symbol takes a code.
func (f *inflater) symbol(c *prefixCode) int {
	entry := c.short[f.bits&(1<<shortCode-1)]
	if n := uint(entry & 15); n > 0 && n <= f.held {
		f.bits >>= n
		f.held -= n
		return int(entry >> 4)
	}
	var code, first, index int
	for n := uint(1); n < 16; n++ {
		code = code<<1 | int(f.bits>>(n-1)&1)
		first <<= 1
		count := int(c.count[n])
		if code-first < count {
			f.take(n)
			return int(c.symbols[index+code-first])
		}
		first += count
		index += count
	}
	f.failed = true
	return 0
}
