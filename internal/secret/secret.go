// Package secret keeps key material out of logs and errors.
package secret

import "log/slog"

// Bytes is key material. Printing, logging or marshalling it shows a placeholder.
type Bytes []byte

const placeholder = "[secret]"

func (Bytes) String() string               { return placeholder }
func (Bytes) GoString() string             { return placeholder }
func (Bytes) LogValue() slog.Value         { return slog.StringValue(placeholder) }
func (Bytes) MarshalJSON() ([]byte, error) { return []byte(`"` + placeholder + `"`), nil }
func (Bytes) MarshalText() ([]byte, error) { return []byte(placeholder), nil }

// Wipe overwrites the bytes. Go may have copied them before; this shortens a secret's life, it does not end it for sure.
func (b Bytes) Wipe() { clear(b) }
