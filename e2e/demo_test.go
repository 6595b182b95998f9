package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/demo"
)

// outer are the folders and files that somebody who steals a gateway, or breaks into the server's outer half, can read.
var outer = []string{"gw-*/state", "gw-*/agent.log", "server/journal", "server/log", "server/ca", "server/public", "server.log", "server/server.yaml"}

// TestMainJob is the demonstration with two gateways and a SIGKILL. While everything still runs, every file of the agents, the
// journal, the log and the logs is searched for what only an opened batch may show.
func TestMainJob(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	var out bytes.Buffer
	s, err := demo.Run(ctx, demo.Options{
		Gateways: 2, Minutes: 3, Bin: bin, Out: &out, Plain: true,
		Summary: filepath.Join(t.TempDir(), "summary.json"),
		Inspect: func(dir string) error { return scan(t, dir) },
	})
	t.Log("\n" + out.String())
	if err != nil {
		t.Fatal(err)
	}
	if !s.OK() || s.AgentKills != 1 || s.SamplesStored != s.SamplesSent || s.SamplesSent < 2*3*60*7 {
		t.Errorf("%+v", s)
	}
}

// canaries are pieces of what the monitors send: patient ids, the assigning authority, a code's name, a raw segment.
var canaries = []string{"WL0001", "WL0002", "2.25.1234", "WARDSIM", "MDC_ECG_HEART_RATE", "OBX|", "MDC_DIM_BEAT_PER_MIN"}

func scan(t *testing.T, dir string) error {
	files := 0
	for _, pattern := range outer {
		roots, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(roots) == 0 {
			return fmt.Errorf("nothing to scan at %s: %v", pattern, err)
		}
		for _, root := range roots {
			err := walk(root, func(path string, data []byte) {
				files++
				for _, c := range canaries {
					if bytes.Contains(data, []byte(c)) {
						t.Errorf("%s shows %q", strings.TrimPrefix(path, dir), c)
					}
				}
			})
			if err != nil {
				return err
			}
		}
	}
	if files < 20 {
		return fmt.Errorf("only %d files were scanned", files)
	}
	// The scan must be able to find something: the records, which are the inner half, do hold what the canaries are made of.
	found := map[string]bool{}
	if err := walk(filepath.Join(dir, "server"), func(path string, data []byte) {
		if strings.HasPrefix(filepath.Base(path), "wardlink.db") {
			for _, c := range canaries {
				found[c] = found[c] || bytes.Contains(data, []byte(c))
			}
		}
	}); err != nil {
		return err
	}
	if !found["WL0001"] {
		return fmt.Errorf("the scan does not even find WL0001 in the records: it proves nothing")
	}
	return nil
}

func walk(root string, visit func(path string, data []byte)) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // replaced or removed while we looked
		}
		visit(path, data)
		return err
	})
}
