package backup

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Manifest is a backup's last file. It describes what comes before it.
type Manifest struct {
	Version     int       `json:"wardlink_backup"` // 1
	Program     string    `json:"program"`         // version of the wardlink-server that made it
	TrustDomain string    `json:"trust_domain"`
	Created     time.Time `json:"created"`
	Files       uint64    `json:"files"`        // in it, without the list and this
	Bytes       int64     `json:"bytes"`        // of them
	ListSHA256  string    `json:"files_sha256"` // of files.sha256
	Origin      string    `json:"log_origin"`
	Checkpoint  string    `json:"log_checkpoint"` // the signed checkpoint that the log in it has
	Journal     uint64    `json:"journal"`        // the journal's entries up to here are in the database
	// Behind are entries that the log held when the backup began and the database in it lacks; gateways bring their publishes again.
	Behind uint64 `json:"records_behind"`
	// LogBehind says that the log in it lacks events of acts that its database holds, since the log's writer was held up.
	LogBehind bool `json:"log_behind"`
}

const (
	manifestName = "manifest.json"
	listName     = "files.sha256"
	maxManifest  = 64 << 10
	maxPath      = 512
)

// Writer writes a backup's files in the order in which they come.
type Writer struct {
	seal  *sealer
	zip   *gzip.Writer
	tar   *tar.Writer
	list  *os.File // a line for each file, as sha256sum writes them
	lines *bufio.Writer
	sum   hash.Hash // of the list
	files uint64
	bytes int64
}

// NewWriter begins a backup in w. list is an empty file that it fills; it belongs to the caller.
func NewWriter(w io.Writer, key Key, recovery []byte, list *os.File) (*Writer, error) {
	s, err := newSealer(w, key, recovery)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewWriterLevel(s, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	b := &Writer{seal: s, zip: z, tar: tar.NewWriter(z), list: list, sum: sha256.New()}
	b.lines = bufio.NewWriter(io.MultiWriter(list, b.sum))
	return b, nil
}

// Add writes one file of exactly size bytes under name, a clean relative path.
func (w *Writer) Add(name string, size int64, r io.Reader) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, Format: tar.FormatPAX}); err != nil {
		return fmt.Errorf("backup: %s: %w", name, err)
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w.tar, h), io.LimitReader(r, size))
	if err == nil && n < size {
		err = fmt.Errorf("%w: %d bytes of %d", io.ErrUnexpectedEOF, n, size)
	}
	if err != nil {
		return fmt.Errorf("backup: %s: %w", name, err)
	}
	w.files++
	w.bytes += size
	_, err = w.lines.WriteString(line(h, name))
	return err
}

// AddFile adds the file at from. One that is not there is fs.ErrNotExist.
func (w *Writer) AddFile(name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("backup: %s is no regular file", from)
	}
	return w.Add(name, info.Size(), f)
}

// Bytes is how much the files added so far hold.
func (w *Writer) Bytes() int64 { return w.bytes }

func line(h hash.Hash, name string) string {
	return hex.EncodeToString(h.Sum(nil)) + "  " + name + "\n"
}

// Close writes the list and the manifest, whose counts and hash it fills in, and ends the stream. It returns the manifest as written.
func (w *Writer) Close(m Manifest) (Manifest, error) {
	if err := w.lines.Flush(); err != nil {
		return Manifest{}, fmt.Errorf("backup: %w", err)
	}
	m.Version, m.Files, m.Bytes, m.ListSHA256 = 1, w.files, w.bytes, hex.EncodeToString(w.sum.Sum(nil))
	size, err := w.list.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = w.list.Seek(0, io.SeekStart)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("backup: %w", err)
	}
	if err := w.Add(listName, size, w.list); err != nil {
		return Manifest{}, err
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return Manifest{}, fmt.Errorf("backup: %w", err)
	}
	if err := w.Add(manifestName, int64(len(data)), strings.NewReader(string(data))); err != nil {
		return Manifest{}, err
	}
	return m, errors.Join(w.tar.Close(), w.zip.Close(), w.seal.Close())
}

// checkName refuses what could be written outside of a directory, or twice.
func checkName(name string) error {
	if name == "" || name == "." || len(name) > maxPath || path.Clean(name) != name || !filepath.IsLocal(name) || strings.ContainsAny(name, "\\\n\x00") {
		return fmt.Errorf("backup: file name %q; expected a clean relative path of at most %d bytes", name, maxPath)
	}
	return nil
}

// Extract opens a backup with its key and writes its files below dir, which must be empty of them: no file is ever overwritten. It
// returns the manifest once every file has the hash that was listed and nothing is missing or left over. What it wrote is not durable yet.
// allowed says which names may be written. After an error what was written proves nothing.
func Extract(r *bufio.Reader, h Header, key Key, dir string, allowed func(name string) bool) (Manifest, error) {
	o, err := newOpener(r, h, key)
	if err != nil {
		return Manifest{}, err
	}
	z, err := gzip.NewReader(o)
	if err != nil {
		return Manifest{}, opened(o, err)
	}
	x := &extraction{tar: tar.NewReader(z), dir: dir, allowed: allowed, sum: sha256.New()}
	m, err := x.run()
	if err != nil {
		return Manifest{}, opened(o, err)
	}
	// The stream is proven to its last chunk, with nothing behind the archive's end.
	if n, err := io.Copy(io.Discard, z); err != nil {
		return Manifest{}, opened(o, err)
	} else if n > 0 {
		return Manifest{}, fmt.Errorf("backup: %d bytes behind its end", n)
	}
	if _, err := io.Copy(io.Discard, o); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// opened prefers what the encryption says: a changed chunk shows as anything else above it.
func opened(o *opener, err error) error {
	if o.err != nil && !errors.Is(o.err, io.EOF) {
		return o.err
	}
	return fmt.Errorf("backup: %w", err)
}

type extraction struct {
	tar     *tar.Reader
	dir     string
	allowed func(string) bool
	sum     hash.Hash
	files   uint64
	bytes   int64
}

func (x *extraction) run() (m Manifest, err error) {
	for {
		h, err := x.tar.Next()
		if errors.Is(err, io.EOF) {
			return m, errors.New("it has no manifest")
		}
		if err != nil {
			return m, err
		}
		if h.Typeflag != tar.TypeReg {
			return m, fmt.Errorf("%q is no regular file", h.Name)
		}
		if h.Name == listName {
			break
		}
		if err := x.file(h); err != nil {
			return m, err
		}
	}
	listed := sha256.New()
	if _, err := io.Copy(listed, x.tar); err != nil {
		return m, err
	}
	h, err := x.tar.Next()
	if err != nil || h.Name != manifestName || h.Size > maxManifest {
		return m, errors.New("it has no manifest behind its list")
	}
	data, err := io.ReadAll(x.tar)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil || m.Version != 1 {
		return m, errors.New("its manifest is not of version 1")
	}
	if _, err := x.tar.Next(); !errors.Is(err, io.EOF) {
		return m, errors.New("it goes on behind its manifest")
	}
	have := hex.EncodeToString(x.sum.Sum(nil))
	if have != m.ListSHA256 || hex.EncodeToString(listed.Sum(nil)) != m.ListSHA256 || x.files != m.Files || x.bytes != m.Bytes {
		return m, fmt.Errorf("its files are not those of its manifest: %d of %d files, %d of %d bytes, or other hashes", x.files, m.Files, x.bytes, m.Bytes)
	}
	return m, nil
}

func (x *extraction) file(h *tar.Header) error {
	if err := checkName(h.Name); err != nil {
		return err
	}
	if !x.allowed(h.Name) {
		return fmt.Errorf("%q does not belong into a server's directory", h.Name)
	}
	to := filepath.Join(x.dir, filepath.FromSlash(h.Name))
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	if strings.HasPrefix(h.Name, "public/") {
		mode = 0o644
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), x.tar)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	x.files++
	x.bytes += n
	_, err = x.sum.Write([]byte(line(sum, h.Name)))
	return err
}
