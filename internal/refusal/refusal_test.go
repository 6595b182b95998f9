package refusal_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"wardlink/internal/refusal"
)

func TestARefusalIsOfItsKindAndSaysItsOwnText(t *testing.T) {
	kind, other := errors.New("kind"), errors.New("other")
	err := fmt.Errorf("approve: %w", refusal.New(kind, "gateway %s is there; choose another id (%w)", "icu-1", io.EOF))
	if got, want := err.Error(), "approve: gateway icu-1 is there; choose another id (EOF)"; got != want {
		t.Errorf("%q; expected %q", got, want)
	}
	if !errors.Is(err, kind) || !errors.Is(err, io.EOF) || errors.Is(err, other) {
		t.Errorf("kind %v, wrapped %v, other %v", errors.Is(err, kind), errors.Is(err, io.EOF), errors.Is(err, other))
	}
}
