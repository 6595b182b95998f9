package backup

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"wardlink/internal/secret"
)

// The suite is that of telemetry/seal: MLKEM768-P256, HKDF-SHA256, export only, and AES-256-GCM under the exported key.
var (
	kem  = hpke.MLKEM768P256()
	kdf  = hpke.HKDFSHA256()
	aead = hpke.ExportOnly()
)

// The stream's format; FORMAT.md.
const (
	magic             = "wardlink backup 1\n"
	infoLabel         = "wardlink/backup/1\x00"
	exportLabel       = "wardlink/backup-stream/1\x00"
	chunkSize         = 64 << 10
	encapsulationSize = 1088 + 65
	maxRecovery       = 64 << 10
	overhead          = 12 + 16 // of a chunk: nonce and tag
)

// Key is the key pair that backups are encrypted to.
type Key struct{ private hpke.PrivateKey }

// NewKey makes it of keys.BackupSeed.
func NewKey(seed secret.Bytes) (Key, error) {
	k, err := kem.NewPrivateKey(seed)
	if err != nil {
		return Key{}, fmt.Errorf("backup key: %w", err)
	}
	return Key{k}, nil
}

// sealer encrypts a stream in chunks. Close writes the last one; without it a reader refuses the stream.
type sealer struct {
	w      io.Writer
	aead   cipher.AEAD
	chunk  []byte
	number uint64
	err    error
}

// newSealer writes the header, which anybody can read and the chunks are bound to, and begins the stream.
func newSealer(w io.Writer, key Key, recovery []byte) (*sealer, error) {
	if len(recovery) > maxRecovery {
		return nil, fmt.Errorf("backup: recovery file of %d bytes; at most %d", len(recovery), maxRecovery)
	}
	head := append(binary.BigEndian.AppendUint32([]byte(magic), uint32(len(recovery))), recovery...)
	enc, sender, err := hpke.NewSender(key.private.PublicKey(), kdf, aead, []byte(infoLabel))
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	gcm, err := streamKey(sender.Export, head)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(append(head, enc...)); err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	return &sealer{w: w, aead: gcm, chunk: make([]byte, 0, chunkSize)}, nil
}

// streamKey derives the stream's key, bound to the header.
func streamKey(export func(string, int) ([]byte, error), head []byte) (cipher.AEAD, error) {
	sum := sha256.Sum256(head)
	raw, err := export(exportLabel+string(sum[:]), 32)
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	defer clear(raw)
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// chunkAAD binds a chunk to its place and tells the last one from the others, so that none can be left out, moved or cut off.
func chunkAAD(number uint64, last bool) []byte {
	b := binary.BigEndian.AppendUint64(nil, number)
	if last {
		return append(b, 1)
	}
	return append(b, 0)
}

// Write implements io.Writer.
func (s *sealer) Write(p []byte) (n int, err error) {
	for len(p) > 0 && s.err == nil {
		if len(s.chunk) == chunkSize { // only once more comes: the last chunk is Close's
			s.flush(false)
			continue
		}
		m := min(len(p), chunkSize-len(s.chunk))
		s.chunk = append(s.chunk, p[:m]...)
		p, n = p[m:], n+m
	}
	return n, s.err
}

func (s *sealer) flush(last bool) {
	if s.err != nil {
		return
	}
	_, s.err = s.w.Write(s.aead.Seal(nil, nil, s.chunk, chunkAAD(s.number, last)))
	s.number++
	s.chunk = s.chunk[:0]
}

// Close writes the last chunk. It does not close the writer below.
func (s *sealer) Close() error {
	s.flush(true)
	return s.err
}

// Header is what can be read of a backup without its key.
type Header struct {
	Recovery []byte // the passphrase-wrapped recovery file; empty when it is kept apart

	raw, encapsulation []byte
}

// ReadHeader reads a backup's header. Nothing of it is proven before the stream has opened.
func ReadHeader(r *bufio.Reader) (h Header, err error) {
	fixed := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, fixed); err != nil || string(fixed[:len(magic)]) != magic {
		return h, fmt.Errorf("not a backup of version 1 (%q expected at its beginning)", magic[:len(magic)-1])
	}
	n := binary.BigEndian.Uint32(fixed[len(magic):])
	if n > maxRecovery {
		return h, fmt.Errorf("backup: recovery file of %d bytes; at most %d", n, maxRecovery)
	}
	rest := make([]byte, int(n)+encapsulationSize)
	if _, err := io.ReadFull(r, rest); err != nil {
		return h, fmt.Errorf("backup: cut off in its header: %w", noEOF(err))
	}
	h.raw, h.Recovery, h.encapsulation = append(fixed, rest[:n]...), rest[:n], rest[n:]
	return h, nil
}

// noEOF makes of an end of the file an error that no reader takes for a proper end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// opener decrypts. It gives out a chunk only once it has been authenticated, and io.EOF only behind the last one.
type opener struct {
	r      *bufio.Reader
	aead   cipher.AEAD
	buf    []byte
	plain  []byte
	number uint64
	done   bool
	err    error
}

func newOpener(r *bufio.Reader, h Header, key Key) (*opener, error) {
	recipient, err := hpke.NewRecipient(h.encapsulation, key.private, kdf, aead, []byte(infoLabel))
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	gcm, err := streamKey(recipient.Export, h.raw)
	if err != nil {
		return nil, err
	}
	return &opener{r: r, aead: gcm, buf: make([]byte, chunkSize+overhead)}, nil
}

// Read implements io.Reader.
func (o *opener) Read(p []byte) (int, error) {
	for len(o.plain) == 0 && o.err == nil {
		if o.done {
			o.err = io.EOF
			break
		}
		o.next()
	}
	if len(o.plain) == 0 {
		return 0, o.err
	}
	n := copy(p, o.plain)
	o.plain = o.plain[n:]
	return n, nil
}

func (o *opener) next() {
	n, err := io.ReadFull(o.r, o.buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		o.err = fmt.Errorf("backup: cut off behind chunk %d: %w", o.number, noEOF(err))
		return
	}
	_, peek := o.r.Peek(1)
	last := errors.Is(peek, io.EOF)
	plain, err := o.aead.Open(nil, nil, o.buf[:n], chunkAAD(o.number, last))
	switch {
	case err != nil && o.number == 0:
		o.err = errors.New("backup: does not open: it was made by another server, changed, or cut off")
	case err != nil:
		o.err = fmt.Errorf("backup: chunk %d was changed, or the file is cut off there", o.number)
	default:
		o.plain, o.done = plain, last
		o.number++
	}
}
