package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"wardlink/enroll/verify"
	"wardlink/internal/swtpmtest"
)

func open(t *testing.T, path string) *TPM {
	t.Helper()
	d, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// loaded counts what occupies slots.
func loaded(t *testing.T, d *TPM) int {
	t.Helper()
	n := 0
	if err := d.do(t.Context(), "count", func(c *conn) error {
		for _, first := range []uint32{transientObjects, loadedSessions, savedSessions} {
			handles, err := c.handles(first)
			if err != nil {
				return err
			}
			n += len(handles)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestKeysLiveInTheTPM(t *testing.T) {
	sw := swtpmtest.Start(t)
	d := open(t, sw.Path)
	dir := t.TempDir()
	keys, err := CreateKeys(t.Context(), d, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKeys(t.Context(), d, dir); !errors.Is(err, ErrExists) {
		t.Fatalf("creating keys over keys: %v", err)
	}
	checkAttestation(t, d, keys)

	public := keys.Device().Public().(*ecdsa.PublicKey)
	sign := func(k *Keys) {
		t.Helper()
		digest := sha256.Sum256([]byte("a sealing record"))
		sig, err := k.Device().Sign(nil, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if !ecdsa.VerifyASN1(public, digest[:], sig) {
			t.Fatal("the signature does not verify")
		}
	}
	sign(keys)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { sign(keys) })
	}
	wg.Wait()
	if n := loaded(t, d); n != 0 {
		t.Fatalf("%d slots are left occupied", n)
	}

	d.Close()
	sw.Restart()
	d = open(t, sw.Path)
	again, err := OpenKeys(t.Context(), d, dir)
	if err != nil {
		t.Fatal(err)
	}
	sign(again)
	for _, name := range []string{akFile, deviceFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
}

// checkAttestation runs the server's side over what the keys say.
func checkAttestation(t *testing.T, d *TPM, keys *Keys) {
	t.Helper()
	ek, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ek.Certificate == nil || ek.Handle != rsaEKHandle {
		t.Fatalf("EK: certificate of %d bytes at %#x", len(ek.Certificate), ek.Handle)
	}
	cert, err := x509.ParseCertificate(ek.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if of, err := x509.MarshalPKIXPublicKey(cert.PublicKey); err != nil || !bytes.Equal(of, ek.Public) {
		t.Fatal("EK certificate is for another key")
	}
	ak := keys.AK()
	v, err := verify.Attestation(&verify.Request{EK: ek.Public, EKCerts: [][]byte{ek.Certificate},
		AttestParams: verify.Params{Public: ak.Public, CreateData: ak.CreateData, CreateAttestation: ak.CreateAttestation,
			CreateSignature: ak.CreateSignature}}, verify.Trust{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if v.EK != ek.Hash {
		t.Fatal("the EK's hash differs between the two sides")
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	challenge, err := v.Seal(rand.Reader, secret)
	if err != nil {
		t.Fatal(err)
	}
	got, err := keys.ActivateCredential(t.Context(), challenge.Credential, challenge.Secret)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, secret) {
		t.Fatal("the activated credential is another")
	}
	qualifying := sha256.Sum256([]byte("key authorization"))
	certification, err := keys.Certify(t.Context(), qualifying)
	if err != nil {
		t.Fatal(err)
	}
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](certification.Info)
	if err != nil {
		t.Fatal(err)
	}
	if attest.Type != tpm2.TPMSTAttestCertify || !bytes.Equal(attest.ExtraData.Buffer, qualifying[:]) {
		t.Fatal("the certification is of another kind or challenge")
	}
}

func TestInfoListsEveryEK(t *testing.T) {
	d := open(t, swtpmtest.Start(t).Path)
	info, err := d.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ek, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(info.EKs) != 2 || info.EKs[0].Hash != ek.Hash || info.EKs[0].Algorithm != "RSA-2048" || info.EKs[1].Algorithm != "P-384" {
		t.Fatalf("EKs: %+v", info.EKs)
	}
	if info.Manufacturer != "1229081856" || !strings.HasPrefix(info.Model, "SW") || !strings.Contains(info.Firmware, ".") {
		t.Fatalf("info: %+v", info)
	}
}

// A TPM whose maker stored no EK derives it from the seed, and gets the same key.
func TestDerivedEKIsTheSameKey(t *testing.T) {
	sw := swtpmtest.Start(t)
	d := open(t, sw.Path)
	before, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.do(t.Context(), "evict the EK", func(c *conn) error {
		_, err := tpm2.EvictControl{Auth: tpm2.TPMRHOwner, PersistentHandle: rsaEKHandle,
			ObjectHandle: &tpm2.NamedHandle{Handle: rsaEKHandle, Name: c.tpm.ek.name}}.Execute(c)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	sw.Restart()
	d = open(t, sw.Path)
	after, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Hash != before.Hash || after.Handle != 0 || !bytes.Equal(after.Certificate, before.Certificate) {
		t.Fatalf("derived EK differs: %+v", after)
	}
	keys, err := CreateKeys(t.Context(), d, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Certify(t.Context(), sha256.Sum256(nil)); err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	if _, err := keys.Device().Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	if n := loaded(t, d); n != 0 {
		t.Fatalf("%d slots are left occupied", n)
	}
}

// TestAnotherEKIsRefusedLater: what answers after a failed load of the saved EK must be the TPM that the key files were compared with.
func TestAnotherEKIsRefusedLater(t *testing.T) {
	d := open(t, swtpmtest.Start(t).Path)
	other := swtpmtest.Manufacture(t).Start(t)
	if _, err := d.EK(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.do(t.Context(), "change the TPM", func(c *conn) (err error) {
		made, err := c.deriveEK(&ekKinds()[0])
		if err != nil {
			return err
		}
		c.tpm.ek.persistent, c.tpm.ek.saved = 0, made.saved
		c.tpm.dev.Close()
		c.tpm.open = func() (transport.TPMCloser, error) { return openSocket(strings.TrimPrefix(other.Path, "swtpm:")) }
		c.tpm.dev, err = c.tpm.open()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	load := func() error {
		return d.do(t.Context(), "load the EK", func(c *conn) error {
			_, _, release, err := c.loadEK()
			if err == nil {
				release()
			}
			return err
		})
	}
	if err := load(); err == nil {
		t.Fatal("another TPM loaded the saved EK")
	}
	for range 2 {
		if err := load(); !errors.Is(err, ErrForeign) {
			t.Errorf("the EK of another TPM: %v; expected ErrForeign", err)
		}
	}
}

func TestForeignStateIsRefused(t *testing.T) {
	home := swtpmtest.Start(t)
	dir := t.TempDir()
	if _, err := CreateKeys(t.Context(), open(t, home.Path), dir); err != nil {
		t.Fatal(err)
	}
	other := open(t, swtpmtest.Manufacture(t).Start(t).Path)
	if _, err := OpenKeys(t.Context(), other, dir); !errors.Is(err, ErrForeign) || errors.Is(err, ErrCleared) {
		t.Errorf("a cloned disk on another TPM: %v", err)
	}

	d := open(t, home.Path)
	if err := d.do(t.Context(), "clear", func(c *conn) error {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(c)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeys(t.Context(), d, dir); !errors.Is(err, ErrForeign) || !errors.Is(err, ErrCleared) {
		t.Errorf("a cleared TPM: %v", err)
	}
	for range 2 { // a crash between the two
		if err := RetireKeys(dir); err != nil {
			t.Fatal(err)
		}
		if retired, err := Retired(dir); err != nil || !retired {
			t.Errorf("%t, %v", retired, err)
		}
	}
	if _, err := CreateKeys(t.Context(), d, dir); err != nil {
		t.Errorf("new keys after a clear: %v", err)
	}
	if retired, err := Retired(dir); err != nil || retired {
		t.Errorf("after the new keys: %t, %v", retired, err)
	}
	if _, err := OpenKeys(t.Context(), d, dir); err != nil {
		t.Error(err)
	}
	if n := loaded(t, d); n != 0 {
		t.Errorf("%d slots are left occupied", n)
	}
	if _, err := OpenKeys(t.Context(), d, t.TempDir()); !errors.Is(err, ErrMissing) {
		t.Errorf("an empty directory: %v", err)
	}
}

func TestDamagedKeyFilesAreRefused(t *testing.T) {
	d := open(t, swtpmtest.Start(t).Path)
	dir := t.TempDir()
	if _, err := CreateKeys(t.Context(), d, dir); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, deviceFile))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, data := range map[string][]byte{"a flipped bit": flipped, "cut off": whole[:len(whole)-1], "empty": nil,
		"huge": make([]byte, maxBlob+1)} {
		write(deviceFile, data)
		if _, err := OpenKeys(t.Context(), d, dir); err == nil || errors.Is(err, ErrMissing) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := CreateKeys(t.Context(), d, dir); err == nil {
			t.Errorf("%s: created keys over a damaged file", name)
		}
	}
	write(deviceFile, whole)
	write(akFile, whole) // the device key in the AK's place
	if _, err := OpenKeys(t.Context(), d, dir); err == nil {
		t.Error("a device key passed for the AK")
	}
	if err := os.Remove(filepath.Join(dir, akFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeys(t.Context(), d, dir); err == nil || errors.Is(err, ErrMissing) {
		t.Errorf("a missing AK beside a device key must be an error, not a fresh start: %v", err)
	}
}

func TestOpenNamesTheMend(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for path, want := range map[string]string{
		"/dev/no-such-tpm":                    "enable the TPM",
		"swtpm:" + filepath.Join(dir, "none"): "start swtpm with --server",
		"swtpm:" + file:                       "not a socket",
		"swtpm:" + dead:                       "nothing listens",
		file:                                  "expected a device",
	} {
		if _, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; expected %q", path, err, want)
		}
	}
}

// A hung TPM costs its caller the deadline, no more, and the next caller is told that it is busy.
func TestHungTPM(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, "swtpm:"+path); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a TPM that never answers: %v", err)
	}
}

// A TPM that answers nonsense is an error, and its owner goroutine lives.
func TestNonsenseFromTheTPM(t *testing.T) {
	for name, answer := range map[string][]byte{
		"a short header": {0x80, 0x01},
		"a huge size":    {0x80, 0x01, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		"no body":        {0x80, 0x01, 0, 0, 0, 10, 0, 0, 0, 0},
		"a false list":   append([]byte{0x80, 0x01, 0, 0, 0, 19, 0, 0, 0, 0}, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff),
		"no handles, no properties": append([]byte{0x80, 0x01, 0, 0, 0, 19, 0, 0, 0, 0},
			0, 0, 0, 0, 1, 0, 0, 0, 0),
	} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = conn.Write(answer)
				conn.Close()
			}
		}()
		if d, err := Open(t.Context(), "swtpm:"+path); err == nil {
			t.Errorf("%s: opened", name)
			d.Close()
		}
		l.Close()
	}
	d := open(t, swtpmtest.Start(t).Path)
	if err := d.do(t.Context(), "panic", func(*conn) error { panic("index out of range") }); err == nil || !strings.Contains(err.Error(), "makes no sense") {
		t.Errorf("a panic: %v", err)
	}
	if _, err := d.EK(t.Context()); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

// Whatever a killed predecessor left loaded is flushed at the next start.
func TestStaleSlotsAreFlushed(t *testing.T) {
	sw := swtpmtest.Start(t)
	d := open(t, sw.Path)
	for range 3 {
		if err := d.do(t.Context(), "leak an object", func(c *conn) error { _, err := c.storageKey(); return err }); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := d.do(t.Context(), "leak a session", func(c *conn) error {
			_, _, err := tpm2.PolicySession(c, tpm2.TPMAlgSHA256, 16)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if n := loaded(t, d); n != 5 {
		t.Fatalf("%d slots occupied; expected 5", n)
	}
	d.Close()
	d = open(t, sw.Path)
	if n := loaded(t, d); n != 0 {
		t.Fatalf("%d slots are left occupied", n)
	}
}

// go-tpm leaves a policy session loaded when its callback fails; leakFree flushes it without waiting for the next operation's clearing.
func TestFailedPolicyLeaksNoSession(t *testing.T) {
	d := open(t, swtpmtest.Start(t).Path)
	refused := errors.New("refused")
	var sessions []tpm2.TPMHandle
	err := d.do(t.Context(), "fail a policy", func(c *conn) error {
		ek, h, release, err := c.loadEK()
		if err != nil {
			return err
		}
		defer release()
		_, err = tpm2.ActivateCredential{
			ActivateHandle: tpm2.AuthHandle{Handle: h, Name: ek.name, Auth: tpm2.PasswordAuth(nil)},
			KeyHandle: tpm2.AuthHandle{Handle: h, Name: ek.name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16,
				leakFree(func(transport.TPM, tpm2.TPMISHPolicy, tpm2.TPM2BNonce) error { return refused }))},
		}.Execute(c)
		var listErr error
		sessions, listErr = c.handles(loadedSessions)
		if listErr != nil {
			return listErr
		}
		return err
	})
	if !errors.Is(err, refused) || len(sessions) != 0 {
		t.Fatalf("error %v, sessions left %v", err, sessions)
	}
}

func TestSignerSignsSHA256Only(t *testing.T) {
	d := open(t, swtpmtest.Start(t).Path)
	keys, err := CreateKeys(t.Context(), d, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Device().Sign(nil, make([]byte, 48), crypto.SHA384); err == nil {
		t.Error("signed a SHA-384 digest")
	}
	if _, err := keys.Device().Sign(nil, make([]byte, 20), crypto.SHA256); err == nil {
		t.Error("signed 20 bytes as a SHA-256 digest")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Device().Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func FuzzParseBlob(f *testing.F) {
	b := &blob{purpose: purposeDevice, public: []byte("public"), private: []byte("private")}
	f.Add(b.encode())
	f.Add([]byte(blobMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parseBlob(data, purposeDevice)
		if err == nil && !bytes.Equal(got.encode(), data) {
			t.Fatal("a key file that parses must encode to itself")
		}
	})
}
