package eventlog

import (
	"encoding/binary"
	"unicode/utf16"
)

// Header begins a crypto-agile log with SHA-256 digests alone. With Append it makes the logs of software TPMs, which no firmware writes.
func Header() []byte {
	var spec []byte
	spec = append(spec, signature3...)
	spec = append(spec, 0, 0, 0, 0, 0, 2, 0, 2) // client; 2.0, errata 0, UINTN of 8 bytes
	spec = binary.LittleEndian.AppendUint32(spec, 1)
	spec = binary.LittleEndian.AppendUint16(spec, algSHA256)
	spec = binary.LittleEndian.AppendUint16(spec, 32)
	spec = append(spec, 0)
	log := binary.LittleEndian.AppendUint32(nil, 0)
	log = binary.LittleEndian.AppendUint32(log, uint32(NoAction))
	log = append(log, make([]byte, sizeSHA1)...)
	log = binary.LittleEndian.AppendUint32(log, uint32(len(spec)))
	return append(log, spec...)
}

// Append adds one event to a log that Header began.
func Append(log []byte, pcr int, t Type, digest [32]byte, data []byte) []byte {
	log = binary.LittleEndian.AppendUint32(log, uint32(pcr))
	log = binary.LittleEndian.AppendUint32(log, uint32(t))
	log = binary.LittleEndian.AppendUint32(log, 1)
	log = binary.LittleEndian.AppendUint16(log, algSHA256)
	log = append(log, digest[:]...)
	log = binary.LittleEndian.AppendUint32(log, uint32(len(data)))
	return append(log, data...)
}

// Image is the data of a BootApplication event: that firmware started the program at path.
func Image(path string) []byte {
	var file []byte
	for _, u := range append(utf16.Encode([]rune(path)), 0) {
		file = binary.LittleEndian.AppendUint16(file, u)
	}
	node := append([]byte{4, 4}, binary.LittleEndian.AppendUint16(nil, uint16(4+len(file)))...)
	node = append(append(node, file...), 0x7f, 0xff, 4, 0)
	data := make([]byte, 24, 32+len(node))
	data = binary.LittleEndian.AppendUint64(data, uint64(len(node)))
	return append(data, node...)
}
