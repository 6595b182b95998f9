package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"syscall"
)

// A finished segment ends in its summary, after the last page bbolt uses: body, length of body (4, big endian), CRC-32C over body
// and length (4, big endian), magic (8). bbolt does not look there. A start reads summaries only, not the files.
const (
	trailerMagic = "WLSEGEND"
	trailerTail  = 4 + 4 + len(trailerMagic)
	// MaxSummary is the most bytes a summary may have.
	MaxSummary = 79 << 10
	// Reserve is the part of a segment's size that commits cannot use, so that the summary always finds room in it.
	Reserve = 80 << 10
)

// ErrUnfinished: the file has no summary, because it is being written or a crash ended its writer.
var ErrUnfinished = errors.New("segment is not finished")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is CRC-32C, for content that nothing else protects: bbolt checks only its meta pages.
func Checksum(parts ...[]byte) uint32 {
	var sum uint32
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
	}
	return sum
}

// Harden makes what a closed file shows durable: until it has returned nil, the last commit that can be read may be in the page cache
// only. The file must not be open for writing.
//
// Why: bbolt writes a commit's pages, flushes them, and only then writes the meta page that points to them, and flushes that. When
// the last flush fails, or the process is killed before it, the new meta page is in the cache, and read from there; after a failed
// write-back it even counts as clean there, so that another flush alone would succeed and write nothing. Harden therefore writes both
// meta pages again with the bytes that are read, which makes them dirty, and flushes. The pages that they point to need no such
// thing: a meta page exists only when the flush of its pages had succeeded, and after a failed flush the file is closed for good, so
// that no later commit can lean on a page that was lost then.
//
// Crash argument: the bytes do not change, so a torn write leaves a page that verified on disk as it was; one that was not on disk yet
// does not verify, and then the other one counts, as before the call.
func Harden(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("harden segment: %w", err)
	}
	err = harden(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("harden segment %s: %w", path, err)
	}
	return nil
}

// metaFile is the part of os.File that hardening needs.
type metaFile interface {
	io.ReaderAt
	io.WriterAt
	Fd() uintptr
}

// fdatasync is a variable because no test can make a disk fail its flush.
var fdatasync = func(f metaFile) error { return syscall.Fdatasync(int(f.Fd())) }

func harden(f metaFile) error {
	metas := make([]byte, 2*PageSize)
	if _, err := f.ReadAt(metas, 0); err != nil {
		return readError(err)
	}
	if _, err := f.WriteAt(metas, 0); err != nil {
		return err
	}
	return fdatasync(f)
}

// Finish gives back the space that a closed segment does not use and writes its summary, durable on return. The file must not be
// open for writing; it may be finished already.
//
// Crash argument: pages in use are not touched. The cut removes only bytes past the high-water mark (or an older summary), and the
// summary is written after them; half of it does not verify, and the file counts as unfinished and is read page by page, as it
// would have been without the call. With one meta page that does not verify the file is not cut: its pages are evidence. The file is
// hardened before: whoever finds a summary may take all that it counts for durable.
func Finish(path string, summary []byte) error {
	if len(summary) > MaxSummary {
		return fmt.Errorf("finish segment %s: summary has %d bytes, limit is %d", path, len(summary), MaxSummary)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("finish segment: %w", err)
	}
	err = finish(f, summary)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("finish segment %s: %w", path, err)
	}
	return nil
}

func finish(f *os.File, summary []byte) error {
	if err := harden(f); err != nil {
		return err
	}
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	m, valid, err := readMeta(f, stat.Size())
	if err != nil {
		return err
	}
	end := stat.Size()
	if valid == 2 {
		end = int64(m.high) * PageSize
		if err := f.Truncate(end); err != nil {
			return err
		}
	}
	body := append(make([]byte, 0, len(summary)+trailerTail), summary...)
	body = binary.BigEndian.AppendUint32(body, uint32(len(summary)))
	body = binary.BigEndian.AppendUint32(body, Checksum(body))
	body = append(body, trailerMagic...)
	if _, err := f.WriteAt(body, end); err != nil {
		return err
	}
	return fdatasync(f)
}

// Summary reads what Finish wrote; ErrUnfinished when there is none, or none that verifies.
func Summary(path string) ([]byte, error) { return SummaryIn(path, nil) }

// SummaryIn is Summary into the memory of buf where its capacity is enough: whoever reads thousands makes no garbage of them.
func SummaryIn(path string, buf []byte) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read summary: %w", err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read summary: %w", err)
	}
	body, err := readTrailer(f, stat.Size(), buf)
	if err != nil {
		return nil, fmt.Errorf("summary of %s: %w", path, err)
	}
	return body, nil
}

func readTrailer(r io.ReaderAt, size int64, buf []byte) ([]byte, error) {
	var tail [trailerTail]byte
	if size < int64(trailerTail) {
		return nil, ErrUnfinished
	}
	if _, err := r.ReadAt(tail[:], size-int64(trailerTail)); err != nil {
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(tail[:]))
	if string(tail[8:]) != trailerMagic || n > MaxSummary || n+int64(trailerTail) > size {
		return nil, ErrUnfinished
	}
	body := slices.Grow(buf[:0], int(n))[:n]
	if _, err := r.ReadAt(body, size-int64(trailerTail)-n); err != nil {
		return nil, err
	}
	if Checksum(body, tail[:4]) != binary.BigEndian.Uint32(tail[4:]) {
		return nil, ErrUnfinished
	}
	return body, nil
}

// End reads single bytes of a finished file's summary, from its end, without what a database handle costs. Nothing is verified: SummaryIn did
// that once, and what the disk changed since shows as other bytes. Not for concurrent use; the caller closes it.
type End struct {
	fd int
	at int64 // where the summary ends
}

// OpenEnd opens a finished segment.
func OpenEnd(path string) (End, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return End{}, err
	}
	var st syscall.Stat_t
	if err = syscall.Fstat(fd, &st); err != nil {
		_ = syscall.Close(fd)
		return End{}, err
	}
	return End{fd, st.Size - int64(trailerTail)}, nil
}

// Byte is the one that stands so many bytes before the summary's end, from 1.
func (e End) Byte(before int64) (byte, error) {
	var b [1]byte
	n, err := syscall.Pread(e.fd, b[:], e.at-before)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return b[0], err
}

// Close lets go of the file.
func (e End) Close() { _ = syscall.Close(e.fd) } // it was only read
