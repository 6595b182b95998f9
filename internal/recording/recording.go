// Package recording is what a gateway's agent of some build said, kept for tests: e2e/record writes it, and the server's tests play it to
// the present server. It holds the private records key of a hospital that never was, and nothing of a patient.
package recording

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Recording is one agent's story.
type Recording struct {
	Agent       string          `json:"agent"`  // what 'wardlink-agent version' prints
	Commit      string          `json:"commit"` // of its source
	TrustDomain string          `json:"trust_domain"`
	Gateway     string          `json:"gateway"`
	RecordsKey  []byte          `json:"test_only_records_key"` // seed of the private key that the batches are sealed to
	ConfigKey   []byte          `json:"test_only_config_key"`  // PKCS #8
	DeviceKey   []byte          `json:"device_key"`            // SubjectPublicKeyInfo of the gateway's
	Sessions    []Session       `json:"sessions"`
	Exchanges   []Exchange      `json:"exchanges"`
	Readings    json.RawMessage `json:"readings"` // FHIR resources, as the server of that build showed them
}

// Session is one MQTT connection, packet by packet in each direction.
type Session struct {
	Up   [][]byte `json:"up"`
	Down [][]byte `json:"down"`
}

// Exchange is one HTTP request and its answer.
type Exchange struct {
	Method string              `json:"method"`
	Path   string              `json:"path"`
	Header map[string][]string `json:"header"`
	Body   []byte              `json:"body"`
	Status int                 `json:"status"`
	Answer []byte              `json:"answer"`
}

// The files of a recording's directory.
const (
	File     = "recording.json.gz"
	Database = "wardlink.db.gz" // the server's, at the end
	Buffer   = "buffer.tar.gz"  // the agent's, at the end, with a backlog
	maxFile  = 64 << 20         // unpacked
)

// Write makes dir/name of what r gives.
func Write(dir, name string, r io.Reader) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	_, err = io.Copy(z, r)
	return errors.Join(err, z.Close(), f.Close())
}

// Read unpacks dir/name.
func Read(dir, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	data, err := io.ReadAll(io.LimitReader(z, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("longer than %d bytes", maxFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return data, nil
}

// Load reads the recording in dir.
func Load(dir string) (r Recording, err error) {
	data, err := Read(dir, File)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(data, &r)
}
