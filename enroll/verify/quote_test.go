package verify_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"wardlink/enroll/verify"
)

const answered = "the secret of a challenge, 32 by."

// quoted is a genuine quote with a change, signed by the AK that is judged: only the check that the change is for notices.
type quoted struct {
	*forge
	info tpm2.TPMSQuoteInfo
	boot verify.Boot
	ak   *rsa.PublicKey
}

// softwareKey is one for all rows: to make an RSA key takes a second.
var softwareKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func newQuote(t *testing.T) *quoted {
	t.Helper()
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](request(t).AttestParams.CreateAttestation)
	if err != nil {
		t.Fatal(err)
	}
	q := &quoted{forge: &forge{t: t, key: softwareKey(), attest: *attest, data: request(t).AttestParams.CreateData}, ak: &softwareKey().PublicKey}
	q.sign = func(message []byte) []byte {
		sum := sha256.Sum256(message)
		sig, err := rsa.SignPKCS1v15(nil, q.key, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return tpm2.Marshal(signature(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256, sig))
	}
	for i := range 15 {
		value := sha256.Sum256([]byte{byte(i)})
		q.boot.PCRs = append(q.boot.PCRs, value[:])
	}
	want := verify.Qualifying([]byte(answered))
	q.attest.Type, q.attest.ExtraData = tpm2.TPMSTAttestQuote, tpm2.TPM2BData{Buffer: want[:]}
	digest := sha256.Sum256(bytes.Join(q.boot.PCRs, nil))
	q.info = tpm2.TPMSQuoteInfo{PCRDigest: tpm2.TPM2BDigest{Buffer: digest[:]}}
	q.selected(tpm2.TPMAlgSHA256, 0xff, 0xfb, 0)
	return q
}

func (q *quoted) selected(hash tpm2.TPMIAlgHash, pcrs ...byte) {
	q.info.PCRSelect.PCRSelections = append(q.info.PCRSelect.PCRSelections, tpm2.TPMSPCRSelection{Hash: hash, PCRSelect: pcrs})
}

// again is the selection, and the digest of the values, made anew.
func (q *quoted) again(hash tpm2.TPMIAlgHash, values [][]byte, pcrs ...byte) {
	q.info.PCRSelect.PCRSelections, q.boot.PCRs = nil, values
	digest := sha256.Sum256(bytes.Join(values, nil))
	q.info.PCRDigest.Buffer = digest[:]
	q.selected(hash, pcrs...)
}

func (q *quoted) judge() (*verify.Measured, error) {
	if q.attest.Type == tpm2.TPMSTAttestQuote {
		q.attest.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &q.info)
	}
	q.boot.Quote = append(tpm2.Marshal(q.attest), q.boot.Quote...)
	q.boot.Signature = q.sign(q.boot.Quote)
	return verify.Quote(&q.boot, q.ak, []byte(answered))
}

func TestGenuineQuote(t *testing.T) {
	q := newQuote(t)
	m, err := q.judge()
	if err != nil {
		t.Fatal(err)
	}
	if m.Selected != verify.QuotedPCRs || m.Values[11] != [32]byte(q.boot.PCRs[10]) || m.Values[10] != [32]byte{} {
		t.Errorf("PCRs %#x; 10 is not among them, and 11 is %x", m.Selected, m.Values[11])
	}
	// A client may quote others than our agent.
	q = newQuote(t)
	q.again(tpm2.TPMAlgSHA256, q.boot.PCRs[:2], 0x80, 0, 0x80)
	if m, err := q.judge(); err != nil || m.Selected != 0x800080 || m.Values[23] != [32]byte(q.boot.PCRs[1]) {
		t.Errorf("PCRs 7 and 23: %+v %v", m, err)
	}
}

// Each row breaks one thing, and everything else, signature included, is right: only that row's check refuses it.
func TestEachCheckOfAQuoteStandsAlone(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*quoted)
		want   error
	}{
		"bytes behind it":  {func(q *quoted) { q.boot.Quote = []byte{0} }, verify.ErrQuote},
		"made by software": {func(q *quoted) { q.attest.Magic = 0x41414141 }, verify.ErrQuoteMagic},
		"the word on a creation": {func(q *quoted) {
			q.attest.Type = tpm2.TPMSTAttestCreation
			q.attest.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{})
		}, verify.ErrQuoteType},
		"of an older challenge": {func(q *quoted) {
			old := verify.Qualifying([]byte("another"))
			q.attest.ExtraData.Buffer = old[:]
		}, verify.ErrQualifying},
		"over the bare secret": {func(q *quoted) {
			bare := sha256.Sum256([]byte(answered))
			q.attest.ExtraData.Buffer = bare[:]
		}, verify.ErrQualifying},
		"of the SHA-1 bank": {func(q *quoted) { q.again(tpm2.TPMAlgSHA1, q.boot.PCRs, 0xff, 0xfb, 0) }, verify.ErrSelection},
		"of two banks":      {func(q *quoted) { q.selected(tpm2.TPMAlgSHA256, 0, 0, 0) }, verify.ErrSelection},
		"of no bank":        {func(q *quoted) { q.info.PCRSelect.PCRSelections = nil }, verify.ErrSelection},
		"of no PCR":         {func(q *quoted) { q.again(tpm2.TPMAlgSHA256, nil, 0, 0, 0) }, verify.ErrSelection},
		"of PCRs above 23":  {func(q *quoted) { q.again(tpm2.TPMAlgSHA256, q.boot.PCRs, 0xff, 0xfb, 0, 0) }, verify.ErrSelection},
		"a value too few":   {func(q *quoted) { q.again(tpm2.TPMAlgSHA256, q.boot.PCRs[1:], 0xff, 0xfb, 0) }, verify.ErrPCRValues},
		"a value too many":  {func(q *quoted) { q.again(tpm2.TPMAlgSHA256, append(q.boot.PCRs, q.boot.PCRs[0]), 0xff, 0xfb, 0) }, verify.ErrPCRValues},
		"values cut elsewhere": {func(q *quoted) { // their bytes together are the same
			q.boot.PCRs[1] = append(bytes.Clone(q.boot.PCRs[0][31:]), q.boot.PCRs[1]...)
			q.boot.PCRs[0] = q.boot.PCRs[0][:31]
		}, verify.ErrPCRValues},
		"another value":          {func(q *quoted) { q.boot.PCRs[4] = make([]byte, 32) }, verify.ErrPCRDigest},
		"two values in disorder": {func(q *quoted) { q.boot.PCRs[4], q.boot.PCRs[5] = q.boot.PCRs[5], q.boot.PCRs[4] }, verify.ErrPCRDigest},
		"signed by another key": {func(q *quoted) {
			other, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				q.t.Fatal(err)
			}
			q.key = other
		}, verify.ErrQuoteSignature},
		"a signature of another kind": {func(q *quoted) {
			q.sign = func([]byte) []byte {
				return tpm2.Marshal(signature(tpm2.TPMAlgRSAPSS, tpm2.TPMAlgSHA256, make([]byte, 256)))
			}
		}, verify.ErrQuoteSigFormat},
	} {
		t.Run(name, func(t *testing.T) {
			q := newQuote(t)
			row.change(q)
			if m, err := q.judge(); !errors.Is(err, row.want) || m != nil {
				t.Errorf("%v; expected %v", err, row.want)
			}
		})
	}
}

func TestQuoteIsWhole(t *testing.T) {
	for name, spoil := range map[string]func([]byte) []byte{
		"bytes behind it": func(b []byte) []byte { return append(b, 0) }, "cut": func(b []byte) []byte { return b[:len(b)-1] }, "none": func([]byte) []byte { return nil },
	} {
		q := newQuote(t)
		if _, err := q.judge(); err != nil {
			t.Fatal(err)
		}
		q.boot.Quote = spoil(q.boot.Quote)
		q.boot.Signature = q.sign(q.boot.Quote)
		if _, err := verify.Quote(&q.boot, q.ak, []byte(answered)); !errors.Is(err, verify.ErrQuote) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecretRequestIsBounded(t *testing.T) {
	for name, boot := range map[string]verify.Boot{
		"a long quote":     {Quote: make([]byte, 3<<10)},
		"a long signature": {Signature: make([]byte, 3<<10)},
		"many PCRs":        {PCRs: make([][]byte, 25)},
		"a long log":       {Log: make([]byte, verify.MaxEventLog+1)},
		"a long reason":    {Missing: string(make([]byte, 301))},
	} {
		data, err := json.Marshal(verify.SecretRequest{Secret: []byte(answered), Boot: &boot})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify.ParseSecretRequest(data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, data := range map[string][]byte{"a long code": []byte(`{"secret":"AAAA","code":"` + strings.Repeat("c", verify.MaxCode+1) + `"}`),
		"a long request": append([]byte("{}"), bytes.Repeat([]byte(" "), verify.MaxSecretRequest-1)...), "no JSON": []byte("{"), "a number": []byte(`{"secret":7}`)} {
		if _, err := verify.ParseSecretRequest(data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	longest, err := json.Marshal(verify.SecretRequest{Secret: []byte(answered), Boot: &verify.Boot{Quote: make([]byte, 2<<10), Signature: make([]byte, 2<<10),
		PCRs: [][]byte{make([]byte, 32*24)}, Log: make([]byte, verify.MaxEventLog)}})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := verify.ParseSecretRequest(longest); err != nil || len(r.Boot.Log) != verify.MaxEventLog {
		t.Errorf("the longest log that an agent sends: %v", err)
	}
	// What stock clients send.
	if r, err := verify.ParseSecretRequest([]byte(`{"secret":"AAAA","more":1}`)); err != nil || r.Boot != nil || len(r.Secret) != 3 {
		t.Errorf("%+v %v", r, err)
	}
}

// Whatever a stranger sends is refused or judged, and no quote but the signed one passes.
func FuzzQuote(f *testing.F) {
	q := newQuote(&testing.T{})
	if _, err := q.judge(); err != nil {
		f.Fatal(err)
	}
	f.Add(q.boot.Quote, q.boot.Signature, bytes.Join(q.boot.PCRs, nil))
	f.Fuzz(func(t *testing.T, quote, signature, values []byte) {
		b := verify.Boot{Quote: quote, Signature: signature}
		for len(values) > 0 && len(b.PCRs) < 30 {
			n := min(32, len(values))
			b.PCRs, values = append(b.PCRs, values[:n]), values[n:]
		}
		if m, err := verify.Quote(&b, q.ak, []byte(answered)); (m == nil) == (err == nil) || err == nil && !bytes.Equal(quote, q.boot.Quote) {
			t.Fatalf("a forged quote: %+v %v", m, err)
		}
	})
}
