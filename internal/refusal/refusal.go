// Package refusal makes errors that callers tell apart by their kind and people read by their own text.
package refusal

import "fmt"

// refusal is an error of a kind, without the kind's text.
type refusal struct {
	kind error
	says error
}

// New gives an error for which errors.Is(err, kind) holds and whose text is the format's alone: what is refused, why, and the mend. What
// the format wraps with %w is found too.
func New(kind error, format string, args ...any) error {
	return &refusal{kind, fmt.Errorf(format, args...)}
}

func (r *refusal) Error() string   { return r.says.Error() }
func (r *refusal) Unwrap() []error { return []error{r.kind, r.says} }
