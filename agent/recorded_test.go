package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"wardlink/buffer"
	"wardlink/internal/recording"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// unpack writes a tar archive's files below dir.
func unpack(t *testing.T, data []byte, dir string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if h.FileInfo().IsDir() {
			err = os.MkdirAll(path, 0o700)
		} else {
			var text []byte
			if text, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, text, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecordedBuffers: this agent opens the buffers that agents of former builds left, sends all that waits in them, and the hospital can
// open it.
func TestRecordedBuffers(t *testing.T) {
	dirs, err := filepath.Glob("../server/testdata/agents/*/" + recording.Buffer)
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no recorded buffers: %v", err)
	}
	for _, file := range dirs {
		dir := filepath.Dir(file)
		rec, err := recording.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		packed, err := recording.Read(dir, recording.Buffer)
		if err != nil {
			t.Fatal(err)
		}
		base := t.TempDir()
		unpack(t, packed, base)
		verify := func(frame []byte) error { _, err := seal.CheckFrame(frame); return err }
		report, err := buffer.Check(filepath.Join(base, "buffer"), verify)
		if err != nil || len(report.Findings) > 0 || len(report.Damaged) > 0 {
			t.Errorf("%s: %+v, %v", dir, report, err)
		}
		b, err := buffer.Open(buffer.Config{Dir: filepath.Join(base, "buffer"), Lanes: laneNames(), Order: laneOrder(), Cap: 64 << 20, Verify: verify})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		key, err := seal.ParsePrivateKey(rec.RecordsKey)
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]bool{}
		for {
			batches, err := b.Take(16)
			if err != nil {
				t.Fatal(err)
			}
			if len(batches) == 0 {
				break
			}
			for _, taken := range batches {
				for _, v := range opened(t, b, key, taken) {
					values[v] = true
				}
			}
		}
		for _, v := range []string{"90", "91", "92"} {
			if !values[v] {
				t.Errorf("%s: reading %s of the backlog is missing; there are %v", dir, v, values)
			}
		}
	}
}

// opened are the values in a batch as the hospital reads it.
func opened(t *testing.T, b *buffer.Buffer, key seal.PrivateKey, taken buffer.Batch) (values []string) {
	t.Helper()
	raw, err := b.Sealing(taken.Sealing)
	if err != nil {
		t.Fatal(err)
	}
	record, err := seal.ParseRecord(raw)
	if err != nil {
		t.Fatal(err)
	}
	opener, err := seal.NewOpener(key, record)
	if err != nil {
		t.Fatal(err)
	}
	_, plain, err := opener.Open(taken.Frame)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := telemetry.Decode(plain)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range batch.Messages {
		for _, o := range m.Observations {
			values = append(values, o.Value)
		}
	}
	return values
}
