package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sync/errgroup"

	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/enroll/wipe"
	"wardlink/internal/build"
	"wardlink/internal/durable"
	"wardlink/internal/sdnotify"
)

// graveFile is the mark that a wiped gateway leaves in its state directory.
const graveFile = "decommissioned"

const maxGrave = 8 << 10

// wiped are the parts of the state directory that go first, by the beginning of their names: what monitors sent, what the hospital
// configured, and which of its log's checkpoints was seen. Keys and certificate go last, since they sign that the rest is gone. What stays: the mark, the kit, which is public, the time's
// floor, and whatever is not the agent's.
var wiped = []string{"buffer", "config", "sealings", "log"}

// grave is a decommissioned gateway, as its state directory shows it.
//
// Crash argument: it is stored before anything is deleted, and an agent that finds it at its start does nothing but go on with it. The
// word is stored before the keys that signed it go, and deleting twice is harmless.
type grave struct {
	Order   []byte `cbor:"1,keyasint"`           // signed
	Waiting uint64 `cbor:"2,keyasint"`           // batches that the hospital did not have
	Parked  uint64 `cbor:"3,keyasint"`           // and those that it had refused
	Word    []byte `cbor:"4,keyasint,omitempty"` // signed, once the rest is gone; empty for ever where no key could sign
	Erased  bool   `cbor:"5,keyasint"`           // the keys are gone too
	Told    bool   `cbor:"6,keyasint"`           // the hospital has the word

	Servers []string `cbor:"7,keyasint,omitempty"` // of the configuration that is gone, by which the hospital is told
}

func (g *grave) store(state string) error {
	data, err := cbor.Marshal(g)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(state, graveFile), data, 0o600)
}

// openGrave reads the mark; nil where there is none. A mark that cannot be read is one all the same: such a gateway must not begin anew.
func openGrave(state string) (*grave, error) {
	path := filepath.Join(state, graveFile)
	data, err := readBounded(path, maxGrave+1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	g := &grave{}
	if len(data) > maxGrave || cbor.Unmarshal(data, g) != nil {
		return nil, fmt.Errorf("%s says that this gateway is decommissioned, and cannot be read; to make this machine another gateway remove %s whole", path, state)
	}
	return g, nil
}

// buried is the mark of a decommissioned gateway, which nobody may change; nil of all others.
func (a *Agent) buried() *grave {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.grave
}

// keepGrave makes a mark durable, and then the one that counts.
func (a *Agent) keepGrave(g *grave) error {
	if err := g.store(a.cfg.State); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.grave = g
	return nil
}

// reason is the operator's, for status. The order was verified before it was kept.
func (g *grave) reason(a *Agent) (gateway, reason string) {
	if o, err := wipe.Read(g.Order, a.kit.ConfigKey); err == nil {
		return o.Gateway, o.Reason
	}
	return "", ""
}

// rest is what is left of an agent: it erases what is to be erased, gives the hospital its word, answers on its socket, and does nothing
// else until ctx ends.
func (a *Agent) rest(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.serveStatus(ctx) })
	g.Go(func() error { sdnotify.Run(ctx, sdnotify.Service{Alive: a.alive, Log: a.log}); return nil })
	g.Go(func() error {
		a.again(ctx, "wipe this gateway", time.Minute, a.erase)
		a.again(ctx, "tell the hospital that this gateway is wiped", time.Hour, a.tell)
		<-ctx.Done()
		return nil
	})
	return g.Wait()
}

// again does something until it works or ctx ends, ever more seldom.
func (a *Agent) again(ctx context.Context, what string, longest time.Duration, do func(context.Context) error) {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, longest) {
		err := do(ctx)
		if err == nil {
			return
		}
		a.log.Error("cannot "+what+" yet", "error", err, "again_in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// erase deletes what a stolen disk could be asked for, the keys last.
func (a *Agent) erase(ctx context.Context) error {
	g := *a.buried()
	if g.Erased {
		return nil
	}
	entries, err := os.ReadDir(a.cfg.State)
	if err != nil {
		return err
	}
	for _, e := range entries {
		for _, name := range wiped {
			if e.Name() == name || strings.HasPrefix(e.Name(), name+".") {
				if err := os.RemoveAll(filepath.Join(a.cfg.State, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	if err := durable.SyncDir(a.cfg.State); err != nil {
		return err
	}
	if g.Word == nil {
		if g.Word, err = a.word(ctx, &g); err != nil {
			return err
		}
		if err := g.store(a.cfg.State); err != nil {
			return err
		}
	}
	if err := shred(filepath.Join(a.cfg.State, "identity")); err != nil {
		return err
	}
	if err := durable.SyncDir(a.cfg.State); err != nil {
		return err
	}
	g.Erased = true
	if err := a.keepGrave(&g); err != nil {
		return err
	}
	a.log.Warn("this gateway is wiped; it is no gateway any more", "destroyed_undelivered", g.Waiting, "destroyed_refused", g.Parked)
	return nil
}

// word has the device key sign that the rest is gone. Without a key there is none, which is no error: a board that was never enrolled has
// nothing to say. A TPM that does not answer is one.
func (a *Agent) word(ctx context.Context, g *grave) ([]byte, error) {
	gateway, _ := g.reason(a)
	hash := sha256.Sum256(g.Order)
	dir := filepath.Join(a.cfg.State, "identity")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	dev, err := tpm.Open(ctx, a.cfg.TPM)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	key, err := enroll.DeviceKey(ctx, dev, dir)
	switch {
	case errors.Is(err, tpm.ErrMissing), errors.Is(err, tpm.ErrForeign):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return wipe.SignDone(wipe.Done{Gateway: gateway, Order: hash[:], At: a.time.best().UnixMilli(), Waiting: g.Waiting, Parked: g.Parked}, key)
}

// shred overwrites a directory's files before it deletes them. On flash the old cells may survive that; what they hold are keys that only
// this TPM can load and that the hospital admits nowhere.
func shred(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, min(info.Size(), 1<<20)))
		return errors.Join(err, f.Sync(), f.Close())
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir)
}

// tell gives the hospital the word.
func (a *Agent) tell(ctx context.Context) error {
	g := *a.buried()
	if g.Told || len(g.Word) == 0 {
		return nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+a.kit.Servers[0]+enroll.WipedPath, bytes.NewReader(g.Word))
	if err != nil {
		return err
	}
	answer, err := a.httpClient().Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the server answers %s", answer.Status)
	}
	g.Told = true
	if err := a.keepGrave(&g); err != nil {
		return err
	}
	a.log.Info("the hospital has this gateway's word that it is wiped")
	return nil
}

// restStatus is what a decommissioned gateway says of itself.
func (a *Agent) restStatus() Status {
	g := *a.buried()
	gateway, reason := g.reason(a)
	s := Status{
		Time: a.time.facts(), Identity: (&enroll.CutOffError{What: "decommissioned", Reason: reason}).Error(), CutOff: "decommissioned", Revoked: true,
		Gateway: gateway, Kit: a.kit.ShortFingerprint(), Started: a.started, Version: build.Version, PID: os.Getpid(), State: a.cfg.State,
		TrustDomain: a.kit.TrustDomain, Clock: ReadKernelClock(), Wiped: "no",
	}
	if g.Erased {
		s.Wiped = "yes"
	}
	if g.Told {
		s.Wiped = "told"
	}
	s.Disk, _ = DiskAt(a.cfg.State)
	return s
}

// examineWiped is all that is to be said of a decommissioned gateway.
func (s Status) examineWiped() Finding {
	f := Finding{Area: AreaIdentity, Level: Stops, Found: s.Identity, Mend: "nothing: this is no gateway any more"}
	switch s.Wiped {
	case "no":
		f.Found += "; it is being wiped"
		f.Mend = "see the agent's log: the disk or the TPM keeps it from being wiped"
	case "yes":
		f.Found += "; it is wiped, and the hospital has not heard of that yet"
		f.Mend = "leave it on and connected until the hospital has heard"
	case "told":
		f.Found += "; it is wiped, and the hospital has its signed word"
	}
	return f
}
