package buffer

import "encoding/binary"

// filterBytes is the size of the filter of a segment that is being written, and the greatest size of any.
const filterBytes = 64 << 10

// filterHashes is how many bits a digest sets.
const filterHashes = 5

// fineBits is how many bits a digest has in the filter on disk, where filterBytes give so many: at least 32, at most 64. A false hit costs a
// walk over the whole segment (14 ms for 4 MB of small batches on a PC), and a full gigabyte is 256 segments and more: at 32 bits
// (1-exp(-5/32))^5, 6 in 100,000, are false for each, at 64 bits 2 in a million. At 10 to 20 bits, as it was at first, every second new message had one.
const fineBits = 32

// coarseBits is that in the filters that the sieve asks first, and needs little room for: 0.1 to 1 % of false hits.
const coarseBits = 10

// filter is a Bloom filter over message digests. A digest is a SHA-256, so its own words are the hashes. All sizes are powers of
// two and the bit is the hash modulo the size, so a filter folds to half by or-ing its halves.
type filter []byte

func newFilter() filter { return make(filter, filterBytes) }

func (f filter) bit(d *[32]byte, i int) (int, byte) {
	n := uint64(binary.BigEndian.Uint32(d[4*i:])) & (uint64(len(f))*8 - 1)
	return int(n / 8), 1 << (n % 8)
}

func (f filter) add(d *[32]byte) {
	for i := range filterHashes {
		at, bit := f.bit(d, i)
		f[at] |= bit
	}
}

// may is false when the digest was never added.
func (f filter) may(d *[32]byte) bool {
	for i := range filterHashes {
		at, bit := f.bit(d, i)
		if f[at]&bit == 0 {
			return false
		}
	}
	return true
}

// size is the least that f folds to and still gives each of n digests so many bits, 64 bytes at least.
func (f filter) size(n, bits uint64) int {
	size := len(f)
	for size > 64 && uint64(size/2)*8 >= n*bits {
		size /= 2
	}
	return size
}

// into folds f into out, whose size is a power of two and not more than that of f.
func (f filter) into(out filter) filter {
	clear(out)
	for i, b := range f {
		out[i&(len(out)-1)] |= b
	}
	return out
}

// folded is what is kept of a full-sized filter of n digests.
func (f filter) folded(n uint64) filter { return f.into(make(filter, f.size(n, fineBits))) }
