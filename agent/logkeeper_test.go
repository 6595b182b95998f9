package agent

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// testLog is a log's key.
type testLog struct {
	t      testing.TB
	signer note.Signer
	key    string
}

func newTestLog(t testing.TB, n int) testLog {
	secret, key, err := note.GenerateKey(rand.Reader, fmt.Sprintf("ward.example/log/%d", n))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	return testLog{t, signer, key}
}

func (l testLog) checkpoint(size int, leaves string) []byte {
	root := sha256.Sum256([]byte(leaves))
	signed, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n", l.signer.Name(), size, base64.StdEncoding.EncodeToString(root[:]))}, l.signer)
	if err != nil {
		l.t.Fatal(err)
	}
	return signed
}

func TestTheGatewayTellsALogThatWasPutBack(t *testing.T) {
	first, second, forged := newTestLog(t, 1), newTestLog(t, 2), newTestLog(t, 2)
	path, named := filepath.Join(t.TempDir(), "log"), ""
	open := func() *logKeeper {
		k, err := openLogKeeper(path, first.key, func() string { return named }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k := open()
	step := func(what string, signed []byte, origin int, size uint64, doubt string) {
		t.Helper()
		_ = k.offer(signed)
		for range 2 { // and after a start
			s := k.status()
			if s.Origin != fmt.Sprintf("ward.example/log/%d", origin) || s.Size != size || (s.Doubt == "") != (doubt == "") || !strings.Contains(s.Doubt, doubt) {
				t.Fatalf("%s: %+v; want log %d with %d leaves and doubt %q", what, s, origin, size, doubt)
			}
			k = open()
		}
	}
	step("the first", first.checkpoint(10, "a"), 1, 10, "")
	step("the same", first.checkpoint(10, "a"), 1, 10, "")
	step("it grew", first.checkpoint(20, "b"), 1, 20, "")
	step("put back", first.checkpoint(10, "a"), 1, 20, "put back")
	step("rewritten", first.checkpoint(20, "c"), 1, 20, "rewritten")
	step("a successor that nobody names", second.checkpoint(3, "d"), 1, 20, "signed configuration")
	named = second.key
	step("a key of the same name", forged.checkpoint(3, "d"), 1, 20, "signed configuration")
	step("the successor that is named", second.checkpoint(3, "d"), 2, 3, "")
	step("the former one again", first.checkpoint(30, "e"), 2, 3, "no signed configuration")
	step("noise", []byte("noise"), 2, 3, "signed configuration")
	if err := k.offer(make([]byte, maxCheckpoint+1)); err == nil {
		t.Fatal("an over-long checkpoint is taken")
	}
}

// TestACheckpointMayComeBeforeTheConfigurationThatNamesItsKey, since a configuration goes through a trial.
func TestACheckpointMayComeBeforeTheConfigurationThatNamesItsKey(t *testing.T) {
	first, second := newTestLog(t, 1), newTestLog(t, 2)
	named := ""
	k, err := openLogKeeper(filepath.Join(t.TempDir(), "log"), first.key, func() string { return named }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.offer(first.checkpoint(10, "a")); err != nil {
		t.Fatal(err)
	}
	if err := k.offer(second.checkpoint(1, "b")); err == nil || k.status().Doubt == "" {
		t.Fatal("a log that nobody named is taken")
	}
	named = second.key
	if s := k.status(); s.Origin != "ward.example/log/2" || s.Doubt != "" {
		t.Fatalf("%+v; want the log that is named now", s)
	}
}

func FuzzOpenCheckpoint(f *testing.F) {
	l := newTestLog(f, 1)
	f.Add([]byte("noise"), l.key)
	f.Add(l.checkpoint(10, "a"), l.key)
	f.Fuzz(func(t *testing.T, signed []byte, key string) {
		if c, err := openCheckpoint(signed, key); err == nil && (c.origin == "" || c.root == "") {
			t.Fatalf("%+v", c)
		}
	})
}
