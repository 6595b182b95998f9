package buffer

import "encoding/binary"

// filterBytes is the size of the filter of a segment that is being written, and the greatest size of any.
const filterBytes = 64 << 10

// filterHashes is how many bits a digest sets: 5 at 10 bits a digest give about 1 % of false hits.
const filterHashes = 5

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

// folded is the smallest filter that still gives each of n digests 10 bits.
func (f filter) folded(n uint64) filter {
	size := len(f)
	for size > 64 && uint64(size/2)*8 >= n*10 {
		size /= 2
	}
	out := make(filter, size)
	for i, b := range f {
		out[i%size] |= b
	}
	return out
}
