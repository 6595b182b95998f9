package e2e

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/demo"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// outer are the folders and files that somebody who steals a gateway, or breaks into the server's outer half, can read.
var outer = []string{"gw-*/state", "gw-*/agent.log", "server/journal", "server/log", "server/public", "server.log", "server/server.yaml"}

// TestMainJob is the demonstration with two gateways, and everything that goes wrong in it. While everything still runs, every file of the agents, the
// journal, the log and the logs is searched for what only an opened batch may show.
func TestMainJob(t *testing.T) {
	t.Parallel()
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
	if !s.OK() || !s.Compared || s.AuditReads < 2 || s.SamplesStored != s.SamplesSent || s.SamplesSent < 2*3*60*7 {
		t.Errorf("%+v", s)
	}
	if q := s.Quarantine; q == nil || q.PCR != 4 || !strings.Contains(q.Entry, `implant.efi`) || !q.Released || q.Readings == 0 || q.Readings == s.SamplesStored {
		t.Errorf("quarantine: %+v", q)
	}
	if s.AgentKills != 1 || s.ServerKills != 1 || s.Kills.Total != 3 || s.OutageSeconds < 4 || s.BacklogPeak < 10 || s.RevokeSeconds > 2 || len(s.Refusals) != 4 {
		t.Errorf("what went wrong: %+v", s)
	}
}

// TestFailedDemoSaysSo: a summary of a demonstration that never came to compare must not read like one that found nothing wrong, and
// what failed by itself is kept to be looked at.
func TestFailedDemoSaysSo(t *testing.T) {
	tmp := folder(t)
	t.Setenv("TMPDIR", tmp)
	summary := filepath.Join(tmp, "summary.json")
	s, err := demo.Run(t.Context(), demo.Options{Bin: t.TempDir(), Out: io.Discard, Plain: true, Summary: summary})
	if err == nil || s.OK() || !strings.Contains(err.Error(), "are kept in "+tmp) {
		t.Errorf("without any program to run: %v, %+v", err, s)
	}
	if text, err := os.ReadFile(summary); err != nil || !strings.Contains(string(text), `"compared": false`) {
		t.Errorf("%s, %v", text, err)
	}
	if left := running(t, tmp); len(left) > 0 {
		t.Errorf("still running: %q", left)
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
				for _, c := range shown(data) {
					t.Errorf("%s shows %q", strings.TrimPrefix(path, dir), c)
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

// shown are the canaries that data shows to whoever reads it, as it is or inflated: a batch that was never sealed is deflated, after a
// codec byte, and shows almost nothing as it is.
func shown(data []byte) (found []string) {
	texts := append([][]byte{data}, inflated(data)...)
	for _, c := range canaries {
		if slices.ContainsFunc(texts, func(text []byte) bool { return bytes.Contains(text, []byte(c)) }) {
			found = append(found, c)
		}
	}
	return found
}

// inflated gives whatever in data inflates to what may be a batch: codec byte 1, then a deflated CBOR map whose first key is 1. The
// look at the first bytes ends nearly all of the tries within ciphertext at once.
func inflated(data []byte) (texts [][]byte) {
	r := flate.NewReader(nil)
	var head [2]byte
	for at := 0; ; at++ {
		n := bytes.IndexByte(data[at:], 1)
		if n < 0 {
			return texts
		}
		at += n
		_ = r.(flate.Resetter).Reset(bytes.NewReader(data[at+1:]), nil)
		if _, err := io.ReadFull(r, head[:]); err != nil || head[0] < 0xa1 || head[0] > 0xb7 || head[1] != 1 {
			continue
		}
		text, _ := io.ReadAll(io.LimitReader(r, 256<<10)) // cut off or garbage at its end: what came before counts
		texts = append(texts, text)
	}
}

// TestScanSeesUnsealedBatches is the scan's own control: a batch as it is before its seal, anywhere in a file, is found although none
// of the canaries can be read in it as it is.
func TestScanSeesUnsealedBatches(t *testing.T) {
	t.Parallel()
	var b telemetry.Batch
	for i := range 3 {
		msg := fmt.Sprintf("MSH|^~\\&|BEDSIDE|WARDSIM|||20261122120000.000+0000||ORU^R01^ORU_R01|C-%d|T|2.6|||AL|NE||UNICODE UTF-8\r", i) +
			"PID|||WL0001^^^WARDSIM&2.25.1234&ISO^MR||^^^^^^U\rOBR|1|||182777000|||20261122120000.000+0000\r" +
			"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.1.1.1|78|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\r" +
			"OBX|2|NM|151562^MDC_RESP_RATE^MDC|1.1.2.1|15|264928^MDC_DIM_RESP_PER_MIN^MDC|||||R\r" +
			"OBX|3|NM|150037^MDC_PRESS_BLD_ART_ABP_SYS^MDC|1.2.1.1|110|266016^MDC_DIM_MMHG^MDC|||||R\r" +
			"OBX|4|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.3.1.1|97|262688^MDC_DIM_PERCENT^MDC|||||R\r"
		m, err := hl7.Understand([]byte(msg), hl7.Options{Source: "bed-1"})
		if err != nil {
			t.Fatal(err)
		}
		b.Messages = append(b.Messages, m)
	}
	bare, err := telemetry.Encode(b)
	if err != nil {
		t.Fatal(err)
	}
	if bare[0] != 1 {
		t.Fatalf("codec %d: the batch is not deflated and this test shows nothing", bare[0])
	}
	noise := make([]byte, 4<<20)
	rand.Read(noise)
	if got := shown(noise); len(got) > 0 {
		t.Fatalf("noise shows %q", got)
	}
	copy(noise[len(noise)/3:], bare)
	if bytes.Contains(noise, []byte("WL0001")) {
		t.Fatal("the batch shows WL0001 as it is: this test shows nothing")
	}
	path := filepath.Join(t.TempDir(), "segment")
	if err := os.WriteFile(path, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := walk(filepath.Dir(path), func(_ string, data []byte) { got = shown(data) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got, "WL0001") || !slices.Contains(got, "WARDSIM") {
		t.Errorf("the scan sees %q of an unsealed batch; expected WL0001 and WARDSIM", got)
	}
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
