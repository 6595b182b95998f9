package agent

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/mod/sumdb/note"

	"wardlink/internal/durable"
)

// logKeeper keeps the last signed checkpoint of the hospital's log that this gateway was shown: kept where the hospital cannot change it, it shows a log that was
// put back. A log's successor, which a restore begins, counts only if a configuration that the config key signed names its key. Whatever it
// finds is told and changes nothing: telemetry flows on.
//
// BUG(consistency): it holds sizes, and roots of equal size, against each other. That a larger log contains the smaller one is not proven here;
// 'wardlink audit verify --older' proves it for a checkpoint that was kept.
type logKeeper struct {
	kit   string        // the kit's verifier key
	named func() string // the key that the configuration in force names; "": none
	log   *slog.Logger

	mu    sync.Mutex
	file  *durable.AB
	state logState
	last  checkpoint // of state.Signed
	// pending could not be verified when asked was the key that the configuration names: a restored server's comes before its configuration is in force.
	pending []byte
	asked   string
}

// logState is what is kept on disk.
type logState struct {
	Signed []byte `cbor:"1,keyasint"`
	Key    string `cbor:"2,keyasint"`
	Doubt  string `cbor:"3,keyasint,omitempty"` // why the log is doubted; stays until a successor is named
}

// checkpoint is C2SP tlog-checkpoint's three lines, verified.
type checkpoint struct {
	origin, root string
	number, size uint64
}

// maxCheckpoint is the server's own bound.
const maxCheckpoint = 16 << 10

// LogStatus is what this gateway knows of the hospital's transparency log.
type LogStatus struct {
	Origin string `json:"origin,omitempty"` // "" before the first checkpoint
	Size   uint64 `json:"size,omitempty"`   // leaves, when it was shown last
	Doubt  string `json:"doubt,omitempty"`  // what is wrong with it
}

func openLogKeeper(path, kit string, named func() string, log *slog.Logger) (*logKeeper, error) {
	file, data, aside, lost, err := durable.OpenABOrAside(path, 2*maxCheckpoint)
	if err != nil {
		return nil, fmt.Errorf("log's checkpoint: %w", err)
	}
	if lost != nil {
		log.Error("the kept checkpoint of the hospital's log is lost; the next one is taken as it comes", "set_aside", aside, "error", lost)
	}
	k := &logKeeper{kit: kit, named: named, log: log, file: file}
	if data == nil {
		return k, nil
	}
	if err := cbor.Unmarshal(data, &k.state); err == nil {
		k.last, err = openCheckpoint(k.state.Signed, k.state.Key)
		if err == nil {
			return k, nil
		}
	}
	log.Error("the kept checkpoint of the hospital's log cannot be read; the next one is taken as it comes")
	k.state = logState{}
	return k, nil
}

// openCheckpoint verifies a signed checkpoint by one key, whose name must be its origin.
func openCheckpoint(signed []byte, key string) (c checkpoint, err error) {
	if len(signed) > maxCheckpoint {
		return c, fmt.Errorf("checkpoint: %d bytes; at most %d", len(signed), maxCheckpoint)
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return c, fmt.Errorf("checkpoint: log key: %w", err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return c, fmt.Errorf("checkpoint: %w", err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != v.Name() {
		return c, errors.New("checkpoint: expected the key's origin, a size and a root")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	size, serr := strconv.ParseUint(lines[1], 10, 63)
	number, nerr := strconv.ParseUint(lines[0][strings.LastIndexByte(lines[0], '/')+1:], 10, 63)
	if err = errors.Join(err, serr, nerr); err != nil || len(root) != 32 {
		return c, errors.New("checkpoint: expected the key's origin, a size and a root")
	}
	return checkpoint{origin: lines[0], root: lines[2], number: number, size: size}, nil
}

// offer takes a checkpoint that the hospital sent. An error says why it is not kept; it is told once.
func (k *logKeeper) offer(signed []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked, k.pending = k.named(), nil
	c, key, err := k.verify(signed)
	if err != nil && len(signed) <= maxCheckpoint {
		k.pending = signed
	}
	if err == nil {
		err = k.judge(c, key)
	}
	if err != nil {
		if text := err.Error(); text != k.state.Doubt {
			k.log.Error("the hospital's log is not the one that this gateway was shown, unless its configuration names the new one within minutes; telemetry goes on", "error", err)
			k.state.Doubt = text
			return errors.Join(err, k.store())
		}
		return err
	}
	if c == k.last {
		return nil
	}
	if c.origin != k.last.origin {
		k.state.Doubt = "" // its end was named by who may
		if k.last.origin != "" {
			k.log.Warn("the hospital's log has a successor, as the signed configuration says", "former", k.last.origin, "leaves", k.last.size, "log", c.origin)
		}
	}
	k.last, k.state.Signed, k.state.Key = c, signed, key
	return k.store()
}

// verify finds the key that the checkpoint is signed with, among those that count.
func (k *logKeeper) verify(signed []byte) (c checkpoint, key string, err error) {
	for _, key := range []string{k.named(), k.state.Key, k.kit} {
		if key == "" {
			continue
		}
		if c, err = openCheckpoint(signed, key); err == nil {
			return c, key, nil
		}
	}
	return checkpoint{}, "", fmt.Errorf("%w; expected the log of the kit, or one that the signed configuration names", err)
}

// judge holds a verified checkpoint against the last one.
func (k *logKeeper) judge(c checkpoint, key string) error {
	switch {
	case k.last.origin == "":
		return nil
	case c.origin != k.last.origin && c.number > k.last.number && key == k.named():
		return nil
	case c.origin != k.last.origin:
		return fmt.Errorf("log %s was shown after %s, and no signed configuration says so", c.origin, k.last.origin)
	case key != k.state.Key:
		return fmt.Errorf("log %s has another key than before", c.origin)
	case c.size < k.last.size:
		return fmt.Errorf("log %s had %d leaves and was shown with %d: it was put back", c.origin, k.last.size, c.size)
	case c.size == k.last.size && c.root != k.last.root:
		return fmt.Errorf("log %s has other leaves than before: it was rewritten", c.origin)
	}
	return nil
}

func (k *logKeeper) store() error {
	data, err := cbor.Marshal(k.state)
	if err != nil {
		return err
	}
	return k.file.Store(data)
}

// status also looks at what came before the configuration that names its key.
func (k *logKeeper) status() LogStatus {
	k.mu.Lock()
	pending := k.pending
	if k.asked == k.named() {
		pending = nil
	}
	k.mu.Unlock()
	if pending != nil {
		_ = k.offer(pending) // it has told
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return LogStatus{Origin: k.last.origin, Size: k.last.size, Doubt: k.state.Doubt}
}
