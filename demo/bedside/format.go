package bedside

import (
	"encoding/binary"
	"fmt"
	"math"
)

// format is a way in which samples lie in a file (signal(5) of the WFDB Applications Guide).
type format struct {
	bits    int   // of one sample
	min     int32 // the least number of its converter, which also stands for a missing sample
	max     int32
	decode  func(data []byte, samples []int32) // data holds exactly samples
	padding int                                // bytes that may follow the last sample
}

// formatOf gives the format of that number in a header.
func formatOf(number int) (format, error) {
	switch number {
	case 16:
		return format{16, math.MinInt16, math.MaxInt16, decode16, 0}, nil
	case 24:
		return format{24, -1 << 23, 1<<23 - 1, decode24, 0}, nil
	case 32:
		return format{32, math.MinInt32, math.MaxInt32, decode32, 0}, nil
	case 61:
		return format{16, math.MinInt16, math.MaxInt16, decode61, 0}, nil
	case 80:
		return format{8, math.MinInt8, math.MaxInt8, decode80, 0}, nil
	case 160:
		return format{16, math.MinInt16, math.MaxInt16, decode160, 0}, nil
	case 212:
		return format{12, -1 << 11, 1<<11 - 1, decode212, 1}, nil
	}
	return format{}, fmt.Errorf("format %d is not supported; expected 16, 24, 32, 61, 80, 160 or 212", number)
}

// bytes is the room that n samples take.
func (f format) bytes(n int64) int64 { return (n*int64(f.bits) + 7) / 8 }

// fits tells whether size bytes are n samples and nothing else. A last lone sample of format 212 is followed by a spare byte in some
// files.
func (f format) fits(size, n int64) bool {
	return size == f.bytes(n) || n*int64(f.bits)%8 != 0 && size == f.bytes(n)+int64(f.padding)
}

// decode16 reads two's complement, low byte first.
func decode16(data []byte, samples []int32) {
	for i := range samples {
		samples[i] = int32(int16(binary.LittleEndian.Uint16(data[2*i:])))
	}
}

// decode24 reads two's complement, low byte first.
func decode24(data []byte, samples []int32) {
	for i := range samples {
		b := data[3*i:]
		samples[i] = int32(uint32(b[0])<<8|uint32(b[1])<<16|uint32(b[2])<<24) >> 8
	}
}

// decode32 reads two's complement, low byte first.
func decode32(data []byte, samples []int32) {
	for i := range samples {
		samples[i] = int32(binary.LittleEndian.Uint32(data[4*i:]))
	}
}

// decode61 reads two's complement, high byte first.
func decode61(data []byte, samples []int32) {
	for i := range samples {
		samples[i] = int32(int16(binary.BigEndian.Uint16(data[2*i:])))
	}
}

// decode80 reads offset binary of one byte.
func decode80(data []byte, samples []int32) {
	for i := range samples {
		samples[i] = int32(data[i]) - 1<<7
	}
}

// decode160 reads offset binary of two bytes, low byte first.
func decode160(data []byte, samples []int32) {
	for i := range samples {
		samples[i] = int32(binary.LittleEndian.Uint16(data[2*i:])) - 1<<15
	}
}

// decode212 reads pairs of 12-bit two's complement in three bytes: the first sample has the first byte and the low half of the second,
// the other one the third byte and the high half of the second.
func decode212(data []byte, samples []int32) {
	for i := range samples {
		b := data[i/2*3:]
		v := uint32(b[1]&0x0f)<<8 | uint32(b[0])
		if i%2 == 1 {
			v = uint32(b[1]&0xf0)<<4 | uint32(b[2])
		}
		samples[i] = int32(v<<20) >> 20
	}
}
