package ca

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/crypto/acme"
)

// FuzzACME: whatever a client with a good account and a right signature sends, wherever it sends it, is answered, and never as a fault of ours. Without the
// signature nothing of a body but its form would be reached.
func FuzzACME(f *testing.F) {
	h := hospitalOf(f, func(c *Config) { c.PerSource = 1 << 20 })
	board := newSoftBoard(f, h.server.URL, h.server.Client())
	h.registry.active[board.Hash()] = "gw-1"
	client, err := board.newClient()
	if err != nil {
		f.Fatal(err)
	}
	account, err := client.Register(f.Context(), &acme.Account{}, acme.AcceptTOS)
	if err != nil {
		f.Fatal(err)
	}
	order, err := client.AuthorizeOrder(f.Context(), []acme.AuthzID{{Type: "permanent-identifier", Value: "gw-1"}})
	if err != nil {
		f.Fatal(err)
	}
	authorization, err := client.GetAuthorization(f.Context(), order.AuthzURLs[0])
	if err != nil {
		f.Fatal(err)
	}
	base := h.server.URL + "/acme/attest/"
	paths := []string{base + "new-account", base + "new-order", order.URI, order.AuthzURLs[0], authorization.Challenges[0].URI, order.FinalizeURL, account.URI,
		strings.Replace(order.URI, "/order/", "/certificate/", 1), account.URI + "/orders"}
	for i, seed := range []string{`{"termsOfServiceAgreed":true}`, `{"identifiers":[{"type":"permanent-identifier","value":"gw-2"}]}`, "", "", `{"attObj":"oA"}`, `{"csr":"MAA"}`,
		`{"contact":["mailto:a@b"]}`, "", "", "{}", "[", `{"identifiers":[{}],"notBefore":"0001-01-01T00:00:00Z"}`, `{"status":"deactivated","contact":7}`} {
		f.Add(uint8(i), []byte(seed))
	}
	f.Fuzz(func(t *testing.T, where uint8, payload []byte) {
		if strings.Contains(string(payload), "deactivated") {
			return // the account is for the whole run
		}
		target := paths[int(where)%len(paths)]
		answer := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, target, strings.NewReader(h.signed(t, client.Key.(*ecdsa.PrivateKey), account.URI, target, payload)))
		r.Header.Set("Content-Type", "application/jose+json")
		h.ca.ServeHTTP(answer, r)
		if answer.Code >= 500 {
			t.Fatalf("%s: %d %s", target, answer.Code, answer.Body)
		}
		if kind := answer.Header().Get("Content-Type"); answer.Code >= 400 && kind != "application/problem+json" {
			t.Fatalf("%s: a refusal of type %q", target, kind)
		}
	})
}

// signed is a JWS as clients send it (RFC 8555, 6.2).
func (h *hospital) signed(t *testing.T, key *ecdsa.PrivateKey, account, target string, payload []byte) string {
	t.Helper()
	nonce, err := h.ca.authority.Load().store.Request().CreateNonce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	at.Scheme = "https"
	header, err := json.Marshal(map[string]string{"alg": "ES256", "kid": account, "nonce": string(nonce), "url": at.String()})
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	digest := sha256.Sum256([]byte(encode(header) + "." + encode(payload)))
	x, y, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	x.FillBytes(signature[:32])
	y.FillBytes(signature[32:])
	return fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, encode(header), encode(payload), encode(signature))
}
