package ca

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"wardlink/enroll/verify"
)

// Bounds of a trust bundle: all makers' published authorities together are some hundred certificates.
const (
	maxTrustFile = 1 << 20
	trustLook    = 5 * time.Second // how old the answer may be to whether files have changed
)

// TrustDir is the bundle of TPM makers' certificates as a directory of files, each with one certificate as DER or any number as PEM. An operator
// extends it beside a running server. Safe for concurrent use.
type TrustDir struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	looked time.Time
	stamp  string // names, sizes and times of the files as they were last read
	wrong  string // what the log was told last, since then
	trust  verify.Trust
}

// OpenTrustDir reads the bundle. An error names the file that is wrong; a directory that is not there is an empty bundle.
func OpenTrustDir(dir string, log *slog.Logger) (*TrustDir, error) {
	d := &TrustDir{dir: dir, log: log}
	var err error
	if d.stamp, err = d.files(); err != nil {
		return nil, err
	}
	d.trust, err = d.read()
	return d, err
}

// Trust is the bundle as the files are now, or were some seconds ago. While one of them is wrong, what was read before holds, and the log says
// which it is.
func (d *TrustDir) Trust() verify.Trust {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.looked) >= trustLook {
		d.looked = time.Now()
		d.reload()
	}
	return d.trust
}

func (d *TrustDir) reload() {
	stamp, err := d.files()
	if err == nil && stamp == d.stamp {
		d.wrong = ""
		return
	}
	trust := d.trust
	if err == nil {
		trust, err = d.read()
	}
	if err != nil { // what could not be read for a moment is read again at the next look
		if d.wrong != err.Error() {
			d.wrong = err.Error()
			d.log.Error("the TPM makers' certificates cannot be read anew; those that were read before hold", "error", err)
		}
		return
	}
	d.stamp, d.trust, d.wrong = stamp, trust, ""
	d.log.Info("the TPM makers' certificates were read anew", "dir", d.dir)
}

// files describes the files, so that a change of any shows.
func (d *TrustDir) files() (string, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("ek-trust: %w", err)
	}
	var b strings.Builder
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return "", fmt.Errorf("ek-trust: %w", err)
		}
		fmt.Fprintf(&b, "%q %d %d\n", e.Name(), info.Size(), info.ModTime().UnixNano())
	}
	return b.String(), nil
}

func (d *TrustDir) read() (verify.Trust, error) {
	trust := verify.Trust{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool()}
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return verify.Trust{}, fmt.Errorf("ek-trust: %w", err)
	}
	for _, e := range entries {
		certs, err := ReadTrustFile(filepath.Join(d.dir, e.Name()))
		if err != nil {
			return verify.Trust{}, err
		}
		for _, c := range certs {
			if c.CheckSignatureFrom(c) == nil {
				trust.Roots.AddCert(c)
			} else {
				trust.Intermediates.AddCert(c)
			}
		}
	}
	return trust, nil
}

// ReadTrustFile reads certificates of TPM makers' authorities. Errors name the file and the mend.
func ReadTrustFile(path string) ([]*x509.Certificate, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("ek-trust: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxTrustFile {
		return nil, fmt.Errorf("ek-trust: %s: expected a file of at most %d bytes; remove it", path, maxTrustFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ek-trust: %w", err)
	}
	certs, err := parseTrust(data)
	if err != nil {
		return nil, fmt.Errorf("ek-trust: %s: %w; remove the file or mend it", path, err)
	}
	return certs, nil
}

func parseTrust(data []byte) ([]*x509.Certificate, error) {
	var ders [][]byte
	if len(data) > 0 && data[0] == 0x30 { // DER; PEM is text
		ders = [][]byte{data}
	} else {
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("it holds a %s; expected certificates alone", block.Type)
			}
			ders = append(ders, block.Bytes)
		}
	}
	if len(ders) == 0 {
		return nil, errors.New("expected certificates as PEM, or one as DER")
	}
	var certs []*x509.Certificate
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i+1, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("certificate %d (%s) is not an authority's", i+1, c.Subject)
		}
		certs = append(certs, c)
	}
	return certs, nil
}
