package keys

import (
	"bufio"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/server/ca"
)

func fresh(t *testing.T) (dir, pass string) {
	t.Helper()
	dir, pass = filepath.Join(t.TempDir(), "s"), NewPassphrase()
	if err := Create(dir, "ward.example", pass, time.Now()); err != nil {
		t.Fatal(err)
	}
	return dir, pass
}

func open(t *testing.T, dir string) *Keys {
	t.Helper()
	k, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func agree(*x509.Certificate, crypto.Signer) error { return nil }

func TestRotateIssuing(t *testing.T) {
	dir, pass := fresh(t)
	before := open(t, dir)
	if _, err := MakeIssuing(dir, "ward.example", NewPassphrase(), time.Now()); err == nil {
		t.Error("made without the passphrase")
	}
	next, err := MakeIssuing(dir, "ward.example", pass, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if p, err := Prepared(dir); p != nil || err != nil {
		t.Errorf("something is prepared before Store: %v", err)
	}
	if err := next.Store(); err != nil {
		t.Fatal(err)
	}
	if k := open(t, dir); !k.Issuing.Equal(before.Issuing) {
		t.Error("the next issuing CA is in use before the server took it up")
	}
	if _, err := MakeIssuing(dir, "ward.example", pass, time.Now()); !errors.Is(err, ErrPrepared) {
		t.Errorf("a second one beside it: %v", err)
	}
	no := errors.New("no")
	if _, _, err := AdoptIssuing(dir, before.Root, func(*x509.Certificate, crypto.Signer) error { return no }); !errors.Is(err, no) {
		t.Errorf("taken up though it was refused: %v", err)
	}
	cert, key, err := AdoptIssuing(dir, before.Root, agree)
	if err != nil || !cert.Equal(next.Certificate) || !belongs(cert, key) {
		t.Fatalf("%v", err)
	}
	k := open(t, dir)
	if !k.Issuing.Equal(next.Certificate) || k.Issuing.CheckSignatureFrom(k.Root) != nil {
		t.Error("the next issuing CA is not the present one")
	}
	if former, err := FormerIssuing(dir); err != nil || former == nil || !former.Equal(before.Issuing) {
		t.Errorf("former: %v", err)
	}
	for _, path := range []string{nextIssuingFile, nextIssuingKeyFile} {
		if _, err := os.Stat(filepath.Join(dir, path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// The old key is on the disk no more.
	if data, err := os.ReadFile(filepath.Join(dir, issuingKeyFile)); err != nil || strings.Contains(string(data), keyText(t, before.IssuingKey)) {
		t.Errorf("the old key: %v", err)
	}
	if cert, _, err := AdoptIssuing(dir, before.Root, agree); cert != nil || err != nil {
		t.Errorf("taken up twice: %v", err)
	}
}

func keyText(t *testing.T, key crypto.Signer) string {
	t.Helper()
	w := writer{dir: t.TempDir()}
	w.key("k", key)
	data, err := os.ReadFile(filepath.Join(w.dir, "k"))
	if w.err != nil || err != nil {
		t.Fatal(w.err, err)
	}
	return string(data)
}

// A rotation that a kill ended after any of its steps leaves keys that open, and is ended by the next start.
func TestRotationSurvivesAKillAtEachStep(t *testing.T) {
	dir, pass := fresh(t)
	root := open(t, dir).Root
	first := open(t, dir).Issuing
	next, err := MakeIssuing(dir, "ward.example", pass, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := writer{dir: dir}
	steps := []struct {
		do      func() error
		present *x509.Certificate // what Open gives after it
		adopts  bool              // whether AdoptIssuing has something to do
	}{
		{func() error { w.key(nextIssuingKeyFile, next.key); return w.err }, first, false},
		{func() error { w.certificate(nextIssuingFile, next.Certificate); return w.err }, first, true},
		{func() error { w.certificate(formerIssuingFile, first); return w.err }, first, true},
		{func() error { return move(dir, nextIssuingKeyFile, issuingKeyFile) }, next.Certificate, true},
		{func() error { return move(dir, nextIssuingFile, issuingFile) }, next.Certificate, false},
	}
	for i, step := range steps {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if k := open(t, dir); !k.Issuing.Equal(step.present) {
			t.Errorf("after step %d: another issuing CA", i)
		}
		copied := filepath.Join(t.TempDir(), "c")
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		cert, _, err := AdoptIssuing(copied, root, agree)
		if err != nil || (cert != nil) != step.adopts {
			t.Errorf("after step %d: took up %t, %v", i, cert != nil, err)
		}
		if k := open(t, copied); step.adopts && !k.Issuing.Equal(next.Certificate) {
			t.Errorf("after step %d and a start: not the next issuing CA", i)
		}
		if former, err := FormerIssuing(copied); step.adopts && (err != nil || !former.Equal(first)) {
			t.Errorf("after step %d and a start: former %v", i, err)
		}
	}
}

func TestForeignIssuingIsNotTakenUp(t *testing.T) {
	dir, _ := fresh(t)
	k := open(t, dir)
	root, key, err := ca.NewRoot("ward.example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, certKey, err := ca.NewIssuing("ward.example", root, key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := writer{dir: dir}
	w.key(nextIssuingKeyFile, certKey)
	w.certificate(nextIssuingFile, cert)
	if _, _, err := AdoptIssuing(dir, k.Root, agree); w.err != nil || err == nil || !strings.Contains(err.Error(), "not this root's") {
		t.Errorf("an issuing CA of another root: %v, %v", w.err, err)
	}
	if !open(t, dir).Issuing.Equal(k.Issuing) {
		t.Error("the issuing CA changed")
	}
}

// The attestation CA is renewed past half of its life and not before; a kill between its files leaves a pair that opens.
func TestAttestationRenewsItself(t *testing.T) {
	dir, _ := fresh(t)
	first := open(t, dir).Attestation
	half := ca.AttestationLife / 2
	if renewed, err := renewAttestation(dir, "ward.example", time.Now().Add(half-time.Hour)); renewed || err != nil {
		t.Errorf("renewed before half of its life: %v", err)
	}
	if renewed, err := renewAttestation(dir, "ward.example", time.Now().Add(half+time.Hour)); !renewed || err != nil {
		t.Fatalf("not renewed: %v", err)
	}
	second := open(t, dir)
	if second.Attestation.Equal(first) || second.Attestation.CheckSignatureFrom(second.Attestation) != nil {
		t.Error("the attestation CA is the old one, or not its own root")
	}
	defer func() {
		// Made by a clock that was years ahead, it has not begun once the clock is right, and would certify nobody.
		if renewed, err := renewAttestation(dir, "ward.example", time.Now()); !renewed || err != nil {
			t.Fatalf("one that has not begun is not renewed: %v", err)
		}
		if c := open(t, dir).Attestation; c.NotBefore.After(time.Now()) {
			t.Errorf("it begins at %v", c.NotBefore)
		}
	}()
	w := writer{dir: dir}
	w.certificate(attestationFile, first) // killed between the two files
	if k := open(t, dir); w.err != nil || !k.Attestation.Equal(second.Attestation) {
		t.Errorf("after a kill: %v", w.err)
	}
}

// Two processes on one directory that start at once past half of the attestation CA's life renew it once and read the same one; while either
// runs, a third does not renew it, and says that it is due.
func TestProcessesShareOneAttestationCA(t *testing.T) {
	if dir := os.Getenv("WARDLINK_TEST_HOLD"); dir != "" {
		holdInChild(dir)
		return
	}
	dir, _ := fresh(t)
	late := time.Now().Add(ca.AttestationLife/2 + time.Hour)
	var children []*exec.Cmd
	var ends []io.Closer
	var said []*bufio.Reader
	for range 2 {
		c := exec.Command(os.Args[0], "-test.run=^TestProcessesShareOneAttestationCA$")
		c.Env = append(os.Environ(), "WARDLINK_TEST_HOLD="+dir)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		children, ends, said = append(children, c), append(ends, in), append(said, bufio.NewReader(out))
	}
	var serials []string
	renewals := 0
	for _, r := range said {
		var serial string
		var renewed, due bool
		if _, err := fmt.Fscan(r, &serial, &renewed, &due); err != nil || due {
			t.Fatalf("a process that starts: due %t, %v", due, err)
		}
		if serials = append(serials, serial); renewed {
			renewals++
		}
	}
	if serials[0] != serials[1] || renewals != 1 {
		t.Errorf("they use %v after %d renewals; expected one renewal and the same CA", serials, renewals)
	}
	for i := range children { // one of them runs, then none
		later := late.Add(ca.AttestationLife)
		held, renewed, due, err := HoldAttestation(dir, "ward.example", later)
		if err != nil || renewed || !due {
			t.Fatalf("beside %d processes: renewed %t, due %t, %v", len(children)-i, renewed, due, err)
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		if err := ends[i].Close(); err != nil {
			t.Fatal(err)
		}
		if err := children[i].Wait(); err != nil {
			t.Fatal(err)
		}
	}
	held, renewed, due, err := HoldAttestation(dir, "ward.example", late.Add(ca.AttestationLife))
	if err != nil || !renewed || due {
		t.Fatalf("alone: renewed %t, due %t, %v", renewed, due, err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
}

// holdInChild says which CA it reads, and holds it until its input ends.
func holdInChild(dir string) {
	held, renewed, due, err := HoldAttestation(dir, "ward.example", time.Now().Add(ca.AttestationLife/2+time.Hour))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cert, _, err := attestationPair(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(ca.Serial(cert), renewed, due)
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = held.Close()
	os.Exit(0)
}
