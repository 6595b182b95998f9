package tpm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"

	"wardlink/internal/swtpmtest"
	"wardlink/internal/tpmproxy"
)

// field is a gateway's TPM with its keys, and on its way a proxy that does to it what happens to TPMs in the field.
type field struct {
	*testing.T
	sw    *swtpmtest.TPM
	proxy *tpmproxy.Proxy
	tpm   *TPM
	keys  *Keys
	dir   string
}

func newField(t *testing.T) *field {
	t.Helper()
	f := &field{T: t, sw: swtpmtest.Start(t), dir: t.TempDir()}
	var err error
	if f.proxy, err = tpmproxy.Start(f.sw.Socket, filepath.Join(filepath.Dir(f.sw.Socket), "proxy")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.proxy.Away)
	f.tpm = open(t, f.proxy.Path)
	if f.keys, err = CreateKeys(t.Context(), f.tpm, f.dir); err != nil {
		t.Fatal(err)
	}
	f.proxy.Count()
	return f
}

// in runs a test on this TPM, which must be as it was afterwards: it signs, and nothing is loaded.
func (f *field) in(name string, test func(f *field)) {
	f.Helper()
	f.Run(name, func(t *testing.T) {
		inner := *f
		inner.T = t
		test(&inner)
		f.proxy.Heal()
		inner.signs()
		if n := loaded(t, f.tpm); n != 0 {
			t.Errorf("%d slots are left occupied", n)
		}
	})
}

func (f *field) sign() error {
	digest := sha256.Sum256([]byte("a sealing record"))
	signature, err := f.keys.Device().Sign(nil, digest[:], crypto.SHA256)
	if err == nil && !ecdsa.VerifyASN1(f.keys.Device().Public().(*ecdsa.PublicKey), digest[:], signature) {
		f.Error("the signature does not verify")
	}
	return err
}

func (f *field) signs() {
	f.Helper()
	if err := f.sign(); err != nil {
		f.Error(err)
	}
}

// troubled holds an error to what an operator should read of it.
func (f *field) troubled(err error, what, mend string) {
	f.Helper()
	var trouble *Trouble
	if !errors.As(err, &trouble) || !strings.Contains(trouble.What, what) || !strings.Contains(trouble.Mend, mend) {
		f.Errorf("%v: expected %q, and %q as its mend", err, what, mend)
	}
}

// TestField is what the field does to a TPM, one after another on the same.
func TestField(t *testing.T) {
	f := newField(t)
	f.in("busy for a while", (*field).testBusy)
	f.in("slow", (*field).testSlow)
	f.in("hung", (*field).testHung)
	f.in("locked out", (*field).testLockedOut)
	f.in("passwords", (*field).testPasswords)
	f.in("a guarded index", (*field).testGuardedIndex)
	f.in("cuts of the power", (*field).testPowerCuts)
	f.in("full slots", (*field).testFullSlots)
	f.in("a foreign storage key", (*field).testForeignStorageKey)
	f.in("an interposer", (*field).testInterposer)
	f.in("away", (*field).testAway)
}

// The same command is sent again until the TPM takes it: no session breaks, and nothing is done twice.
func (f *field) testBusy() {
	for _, code := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded} {
		f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCSign), Times: 4, Answer: uint32(code)})
		f.signs()
		if n := f.proxy.Count()[uint32(tpm2.TPMCCSign)]; n != 5 {
			f.Errorf("%v: %d commands to sign; expected 5", code, n)
		}
	}
	// Flushes as well, which are what frees the slots.
	for range 3 {
		f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCFlushContext), Times: 3, Answer: uint32(tpm2.TPMRCRetry)})
		f.proxy.Inject(tpmproxy.Fault{Times: 4, Answer: uint32(tpm2.TPMRCTesting)})
		f.signs()
	}
}

func (f *field) testSlow() {
	const slow = 300 * time.Millisecond
	f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCSign), Times: 1, Delay: slow})
	began := time.Now()
	f.signs()
	if took := time.Since(began); took < slow {
		f.Errorf("it took %s", took)
	}
}

// A hung TPM costs each caller its own deadline, no more; who waits for it does not hold up the end; and what was abandoned is cleared.
func (f *field) testHung() {
	f.proxy.Inject(tpmproxy.Fault{Hang: true})
	brief := func() error {
		ctx, cancel := context.WithTimeout(f.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := f.keys.Certify(ctx, [32]byte{})
		return err
	}
	f.troubled(brief(), "does not answer", "off and on")
	f.troubled(brief(), "does not answer", "off and on")
	other, err := f.reopen()
	if err == nil {
		f.Error("a hung TPM opened")
		other.Close()
	}
}

// reopen opens the TPM once more, with little patience.
func (f *field) reopen() (*TPM, error) {
	ctx, cancel := context.WithTimeout(f.Context(), 20*time.Millisecond)
	defer cancel()
	return Open(ctx, f.proxy.Path)
}

// Close lets go of who waits for a TPM that never answers.
func TestCloseWhileHung(t *testing.T) {
	d := &TPM{path: "test", ops: make(chan *operation), stop: make(chan struct{})}
	d.closing = func() { close(d.stop) }
	began, never := make(chan struct{}), make(chan struct{})
	defer close(never)
	d.dev = fake(func([]byte) ([]byte, error) { close(began); <-never; return nil, errors.New("gone") })
	go d.own()
	done := make(chan error, 2)
	go func() { _, err := d.EK(t.Context()); done <- err }()
	<-began
	go func() { _, err := d.EK(t.Context()); done <- err }()
	d.Close()
	for range 2 {
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	}
}

// fake is a transport that answers what it likes.
type fake func([]byte) ([]byte, error)

func (f fake) Send(command []byte) ([]byte, error) { return f(command) }
func (fake) Close() error                          { return nil }

// A TPM that stays busy is given up after longestBusy, after few enough tries, in words that name it; and at once when the caller gives up.
func TestBusyForEver(t *testing.T) {
	for _, code := range busy {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			d := &TPM{dev: fake(func([]byte) ([]byte, error) {
				tries++
				return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, uint32(code.(tpm2.TPMRC))), nil
			})}
			began := time.Now()
			err := d.attempt(&conn{ctx: t.Context(), tpm: d}, func(c *conn) error { _, err := c.property(tpm2.TPMPTManufacturer); return err })
			var trouble *Trouble
			if !errors.Is(err, code) || !errors.As(Explain("/dev/tpmrm0", err), &trouble) || !strings.Contains(trouble.What, "busy") {
				t.Error(err)
			}
			if took := time.Since(began); took < longestBusy || took > longestBusy+longestPause || tries > 200 {
				t.Errorf("%d tries in %s", tries, took)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began = time.Now()
			if _, err := (&conn{ctx: ctx, tpm: d}).property(tpm2.TPMPTManufacturer); err == nil || time.Since(began) > time.Second {
				t.Errorf("%v after %s", err, time.Since(began))
			}
		})
	}
}

// go-tpm's transport of a device answers nothing, and no error, when its own patience with a busy TPM is over.
func TestNoAnswerIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &TPM{dev: fake(func([]byte) ([]byte, error) { return nil, nil })}
		if _, err := (&conn{ctx: t.Context(), tpm: d}).property(tpm2.TPMPTManufacturer); !errors.Is(err, tpm2.TPMRCRetry) {
			t.Error(err)
		}
	})
}
