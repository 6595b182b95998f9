package tpm

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"wardlink/internal/child"
	"wardlink/internal/swtpmtest"
)

// The test binary runs itself as a child that is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("TPM_SOAK"); path != "" {
		fmt.Fprintln(os.Stderr, "child:", soak(path, os.Getenv("TPM_SOAK_KEYS")))
		os.Exit(3)
	}
	swtpmtest.Main(m)
}

// soak does to a TPM what an agent does, until it is killed: it opens it and its keys, and then whatever comes. A line precedes the opening and follows each
// operation. Anything that is left loaded after one is an error.
func soak(path, dir string) error {
	ctx := context.Background()
	fmt.Println("open")
	d, err := Open(ctx, path)
	if err != nil {
		return err
	}
	keys, err := OpenKeys(ctx, d, dir)
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte("a sealing record"))
	operations := []func() error{
		func() error { _, err := keys.Device().Sign(nil, digest[:], crypto.SHA256); return err },
		func() error { _, err := keys.Certify(ctx, digest); return err },
		func() error { _, err := keys.Quote(ctx, digest); return err },
		func() error { _, err := d.Info(ctx); return err },
		func() error {
			return d.do(ctx, "create a key", func(c *conn) error { return c.createKey(&blob{purpose: purposeDevice}, deviceTemplate()) })
		},
		func() error { // a credential that is not for this TPM: refused with the session begun and the key loaded
			if _, err := keys.ActivateCredential(ctx, tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: make([]byte, 52)}), tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: make([]byte, 256)})); err == nil {
				return errors.New("activated nonsense")
			}
			return d.Usable(ctx) // what a failed operation leaves is cleared by the next one
		},
	}
	for {
		if err := operations[rand.IntN(len(operations))](); err != nil {
			return err
		}
		var left held
		if err := d.do(ctx, "count", func(c *conn) (err error) { left, err = c.held(); return err }); err != nil {
			return err
		} else if len(left.slots) > 0 {
			return fmt.Errorf("an operation left %x loaded", left.slots)
		}
		fmt.Println("done")
	}
}

// held is what is in a TPM: in its slots, and what must stay for ever.
type held struct{ slots, kept []tpm2.TPMHandle }

func (c *conn) held() (h held, err error) {
	for into, ranges := range map[*[]tpm2.TPMHandle][]uint32{
		&h.slots: {transientObjects, loadedSessions, savedSessions},
		&h.kept:  {0x81000000, 0x01000000}, // persistent objects, NV indices
	} {
		for _, first := range ranges {
			handles, err := c.handles(first)
			if err != nil {
				return held{}, err
			}
			*into = append(*into, handles...)
		}
	}
	return h, nil
}

// look lists what a TPM holds as it is, without the clearing that Open does.
func look(ctx context.Context, socketPath string) (held, error) {
	return (&conn{ctx: ctx, tpm: &TPM{dev: socket{socketPath}}}).held()
}

// TestSoak: programs that are killed with SIGKILL at random moments of random operations, one after the other, leave what they had loaded; whoever opens
// the TPM next has all slots, nothing else was ever taken, and no kill counts as a guess. TPM_KILLS is how many are killed (default 6), each after ten operations in the
// mean.
func TestSoak(t *testing.T) {
	t.Parallel()
	kills, rooms := 6, 1
	if s := os.Getenv("TPM_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		kills, rooms = n, 4 // most of a kill is waiting
	}
	var operations, killed, left atomic.Int64
	var soaking sync.WaitGroup
	for range rooms {
		sw, dir := swtpmtest.Start(t), t.TempDir()
		first := open(t, sw.Path)
		if _, err := CreateKeys(t.Context(), first, dir); err != nil {
			t.Fatal(err)
		}
		first.Close()
		soaking.Go(func() {
			if err := kill(t, sw, dir, kills/rooms, &operations, &killed, &left); err != nil {
				t.Error(err)
			}
		})
	}
	soaking.Wait()
	t.Logf("%d operations, %d kills, of which %d left something loaded", operations.Load(), killed.Load(), left.Load())
	if left.Load() == 0 {
		t.Error("no kill left anything: this test looks at nothing")
	}
}

// kill starts and kills so many children at one TPM.
func kill(t *testing.T, sw *swtpmtest.TPM, dir string, kills int, operations, killed, left *atomic.Int64) error {
	ctx := t.Context()
	before, err := look(ctx, sw.Socket)
	if err != nil {
		return err
	}
	for n := 0; n < kills || left.Load() == 0 && n < 10*kills; n++ { // few may all come between two operations
		within, cancel := context.WithTimeout(ctx, 2*time.Minute) // one that hangs is killed with time left to say so
		cmd := exec.CommandContext(within, os.Args[0])
		cmd.Env = append(os.Environ(), "TPM_SOAK="+sw.Path, "TPM_SOAK_KEYS="+dir)
		cmd.Stderr = os.Stderr
		err := child.Killed(cmd, 1+rand.IntN(20), time.Duration(rand.IntN(60))*time.Millisecond, func(line string) {
			if line == "done" {
				operations.Add(1)
			}
		})
		hung := within.Err()
		cancel()
		if err != nil || hung != nil {
			return fmt.Errorf("child %d: %w", n, errors.Join(err, hung))
		}
		killed.Add(1)
		found, err := look(ctx, sw.Socket)
		if err != nil {
			return err
		}
		if len(found.slots) > 0 {
			left.Add(1)
		}
		if n%2 == 0 { // the next child has to cope
			continue
		}
		d, err := Open(ctx, sw.Path)
		if err != nil {
			return err
		}
		lockout, err := d.Lockout(ctx)
		d.Close()
		if err != nil || lockout.Failures != 0 {
			return fmt.Errorf("after kill %d: %+v, %v", n, lockout, err)
		}
		after, err := look(ctx, sw.Socket)
		if err != nil || len(after.slots) != 0 || !slices.Equal(after.kept, before.kept) {
			return fmt.Errorf("after kill %d: %x; expected %x and no slot taken: %v", n, after, before, err)
		}
	}
	return nil
}
