package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"wardlink/internal/durable"
)

// A key file holds what loads one key into the TPM that made it; without that TPM it is useless, since the TPM encrypts the private
// part under its storage key. Layout, all lengths big endian:
//
//	8 bytes   "WLKEY\x00\x00\x01"
//	1 byte    purpose: 'a' AK, 'd' device key
//	32 bytes  SHA-256 of the EK (PKIX DER) of the TPM that made it
//	5 times   uint16 length, bytes: TPM2B_PUBLIC, TPM2B_PRIVATE, TPMS_CREATION_DATA, TPMS_ATTEST, TPMT_SIGNATURE
//	          (the last three are empty for the device key)
//	32 bytes  SHA-256 of all before it
const (
	blobMagic = "WLKEY\x00\x00\x01"
	maxBlob   = 8 << 10
)

// The file names in the state directory.
const (
	akFile     = "ak.tpm"
	deviceFile = "device.tpm"
)

type purpose byte

const (
	purposeAK     purpose = 'a'
	purposeDevice purpose = 'd'
)

type blob struct {
	purpose  purpose
	ek       [32]byte
	public   []byte // TPM2B_PUBLIC
	private  []byte // TPM2B_PRIVATE, encrypted by the TPM
	creation []byte // TPMS_CREATION_DATA
	attest   []byte // TPMS_ATTEST of the creation
	sig      []byte // TPMT_SIGNATURE over attest
}

func (b *blob) fields() []*[]byte {
	return []*[]byte{&b.public, &b.private, &b.creation, &b.attest, &b.sig}
}

func (b *blob) encode() []byte {
	out := append([]byte(blobMagic), byte(b.purpose))
	out = append(out, b.ek[:]...)
	for _, f := range b.fields() {
		out = binary.BigEndian.AppendUint16(out, uint16(len(*f)))
		out = append(out, *f...)
	}
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

// parseBlob reads a key file's bytes.
func parseBlob(data []byte, want purpose) (*blob, error) {
	const fixed = len(blobMagic) + 1 + 32
	if len(data) < fixed+32 || len(data) > maxBlob {
		return nil, fmt.Errorf("%d bytes; expected %d to %d", len(data), fixed+32, maxBlob)
	}
	body, sum := data[:len(data)-32], sha256.Sum256(data[:len(data)-32])
	if !bytes.Equal(sum[:], data[len(body):]) {
		return nil, errors.New("checksum does not match: the file is damaged")
	}
	if string(body[:len(blobMagic)]) != blobMagic {
		return nil, errors.New("not a key file of version 1")
	}
	if got := purpose(body[len(blobMagic)]); got != want {
		return nil, fmt.Errorf("holds a key of purpose %q, expected %q", rune(got), rune(want))
	}
	b := &blob{purpose: want, ek: [32]byte(body[len(blobMagic)+1:])}
	rest := body[fixed:]
	for _, f := range b.fields() {
		if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
			return nil, errors.New("a field is cut off")
		}
		n := int(binary.BigEndian.Uint16(rest))
		*f, rest = rest[2:2+n], rest[2+n:]
	}
	if len(rest) != 0 {
		return nil, errors.New("trailing bytes")
	}
	return b, nil
}

func readBlob(dir, name string, want purpose) (*blob, error) {
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxBlob {
		return nil, fmt.Errorf("key file %s: %d bytes; expected at most %d", path, info.Size(), maxBlob)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	b, err := parseBlob(data, want)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w; restore it from a backup of this gateway, or remove %s to enrol anew",
			path, err, dir)
	}
	return b, nil
}

func writeBlob(dir, name string, b *blob) error {
	return durable.WriteFile(filepath.Join(dir, name), b.encode(), 0o600)
}
