package ca

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/acme"
)

// TestMalformedAnswers: whatever a client with a good account sends as the answer to its challenge, it is told that it is wrong, with a 4xx or a
// challenge that is invalid. A 5xx would be a fault of ours, and have clients try again.
func TestMalformedAnswers(t *testing.T) {
	h := newHospital(t, func(c *Config) { c.PerSource = 1 << 20 })
	board := newSoftBoard(t, h.server.URL, h.server.Client())
	h.registry.active[board.Hash()] = "gw-1"
	chain, err := board.Attest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, err := board.newClient()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	object := func(v any) []byte {
		raw, err := cbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(map[string]string{"attObj": base64.RawURLEncoding.EncodeToString(raw)})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	type statement = map[string]any
	// right is a statement that is right but for what change does.
	right := func(change func(statement)) func(string) []byte {
		return func(keyAuthorization string) []byte {
			payload, err := board.Payload(keyAuthorization, chain)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := attObj(payload)
			if err != nil {
				t.Fatal(err)
			}
			var whole struct {
				Statement statement `cbor:"attStmt"`
			}
			if err := cbor.Unmarshal(raw, &whole); err != nil {
				t.Fatal(err)
			}
			change(whole.Statement)
			return object(map[string]any{"fmt": "tpm", "attStmt": whole.Statement})
		}
	}
	fixed := func(b []byte) func(string) []byte { return func(string) []byte { return b } }
	rows := map[string]func(string) []byte{
		"a number":            fixed([]byte("7")),
		"a list":              fixed([]byte("[]")),
		"an empty object":     fixed([]byte("{}")),
		"attObj is a number":  fixed([]byte(`{"attObj": 7}`)),
		"attObj is no base64": fixed([]byte(`{"attObj": "!"}`)),
		"attObj is empty":     fixed([]byte(`{"attObj": ""}`)),
		"no CBOR":             fixed([]byte(`{"attObj": "_____w"}`)),
		"CBOR of a number":    fixed(object(7)),
		"CBOR of a list":      fixed(object([]int{1})),
		"fmt is a number":     fixed(object(map[string]any{"fmt": 7, "attStmt": statement{}})),
		"fmt is missing":      fixed(object(map[string]any{"attStmt": statement{}})),
		"another fmt":         fixed(object(map[string]any{"fmt": "apple", "attStmt": statement{}})),
		"attStmt is a list":   fixed(object(map[string]any{"fmt": "tpm", "attStmt": []int{1}})),
		"attStmt is empty":    fixed(object(map[string]any{"fmt": "tpm", "attStmt": statement{}})),
		"too deep":            fixed(object(map[string]any{"fmt": "tpm", "attStmt": statement{"x": [][][][]int{{{{1}}}}}})),
		"an error":            fixed([]byte(`{"error": "no TPM"}`)),
	}
	for _, member := range []string{"ver", "alg", "x5c", "sig", "certInfo", "pubArea"} {
		rows[member+" is missing"] = right(func(s statement) { delete(s, member) })
		for what, v := range map[string]any{"a number": -8, "a text": "text", "bytes": []byte{1, 2, 3}, "empty": []byte{}, "a list": []any{7}, "null": nil, "long": make([]byte, 8<<10)} {
			rows[member+" is "+what] = right(func(s statement) { s[member] = v })
		}
	}
	for what, payload := range rows {
		t.Run(what, func(t *testing.T) {
			ctx := t.Context()
			order, challenge, keyAuthorization := ordered(t, client)
			challenge.Payload = payload(keyAuthorization)
			answered, err := client.Accept(ctx, challenge)
			var problem *acme.Error
			switch {
			case err == nil && answered.Status == acme.StatusInvalid:
			case errors.As(err, &problem) && problem.StatusCode/100 == 4:
			default:
				t.Errorf("%v, %+v", err, answered)
			}
			if _, err := board.Finalize(ctx, client, order, board.Key); err == nil {
				t.Error("a certificate")
			}
		})
	}
	if len(h.registry.keys) != 0 {
		t.Error("a key is in the registry")
	}
}

// ordered is a fresh order of gw-1, its challenge, and what its answer must be over.
func ordered(t *testing.T, client *acme.Client) (order *acme.Order, challenge *acme.Challenge, keyAuthorization string) {
	t.Helper()
	order, err := client.AuthorizeOrder(t.Context(), []acme.AuthzID{{Type: "permanent-identifier", Value: "gw-1"}})
	if err != nil {
		t.Fatal(err)
	}
	authorization, err := client.GetAuthorization(t.Context(), order.AuthzURLs[0])
	if err != nil {
		t.Fatal(err)
	}
	challenge = authorization.Challenges[0]
	if keyAuthorization, err = client.HTTP01ChallengeResponse(challenge.Token); err != nil {
		t.Fatal(err)
	}
	return order, challenge, keyAuthorization
}
