package ca

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"net/http"
	"sync"
	"testing"

	"golang.org/x/crypto/acme"

	"wardlink/server/ca/softboard"
)

// softBoard is a board in software, of which tests make more than an honest one does.
type softBoard struct{ *softboard.Board }

// newSoftBoard makes a board that asks the server at base.
func newSoftBoard(tb testing.TB, base string, client *http.Client) *softBoard {
	tb.Helper()
	ek, ak, err := madeKeys.pair(base)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := softboard.New(base, client, ek, ak)
	if err != nil {
		tb.Fatal(err)
	}
	return &softBoard{b}
}

// newClient is an ACME client of the board's server.
func (b *softBoard) newClient() (*acme.Client, error) { return b.Client(b.Directory()) }

// madeKeys are the RSA keys of all boards of this process, since each takes a good part of a second: the nth board of a server has the nth pair, and those of
// other tests' servers have the same ones.
var madeKeys rsaKeys

type rsaKeys struct {
	mu    sync.Mutex
	of    map[string]int // boards by address of their server
	pairs [][2]*rsa.PrivateKey
}

func (k *rsaKeys) pair(base string) (ek, ak *rsa.PrivateKey, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of == nil {
		k.of = map[string]int{}
	}
	n := k.of[base]
	k.of[base]++
	if n == len(k.pairs) {
		if ek, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, nil, err
		}
		if ak, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, nil, err
		}
		k.pairs = append(k.pairs, [2]*rsa.PrivateKey{ek, ak})
	}
	return k.pairs[n][0], k.pairs[n][1], nil
}

// answers meets a challenge for gw-1 with a payload. The genuine one gets a certificate; any other gets none, an answer that is no fault of ours, and is
// counted once among the refusals.
func (b *softBoard) answers(t *testing.T, client *acme.Client, counted func() int64, genuine bool, payload func(keyAuthorization string) []byte) {
	t.Helper()
	order, challenge, keyAuthorization := ordered(t, client)
	challenge.Payload = payload(keyAuthorization)
	before := counted()
	answered, err := client.Accept(t.Context(), challenge)
	n := counted() - before
	var problem *acme.Error
	switch {
	case genuine:
		if err != nil || answered.Status != acme.StatusValid || n != 0 {
			t.Fatalf("the genuine one: %v, %+v; %d refusals", err, answered, n)
		}
	case err == nil && answered.Status == acme.StatusInvalid, errors.As(err, &problem) && problem.StatusCode/100 == 4:
		if n != 1 {
			t.Errorf("%d refusals are counted", n)
		}
	default:
		t.Errorf("%v, %+v", err, answered)
	}
	if _, err := b.Finalize(t.Context(), client, order, b.Key); (err == nil) != genuine {
		t.Errorf("certificate: %v", err)
	}
}
