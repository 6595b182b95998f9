// Package strictyaml reads the configuration files of agent and server.
package strictyaml

import (
	"errors"
	"io"
	"strings"

	"github.com/goccy/go-yaml"
)

// Decode reads YAML into the struct that v points to; keys that it does not know are errors. Nil for an empty text. An error names line
// and column and never shows what stands there where that could hold credentials, mistyped as a key or in the wrong place: errors
// end in logs and on screens.
func Decode(data []byte, v any) (err error) {
	defer func() {
		if recover() != nil { // the decoder does not survive every text, such as a tag without a value
			err = errors.New("it is YAML that cannot be read; write plain keys, lists and texts")
		}
	}()
	switch err := yaml.UnmarshalWithOptions(data, v, yaml.Strict()); {
	case err == nil, errors.Is(err, io.EOF):
		return nil
	default:
		return errors.New(plain(yaml.FormatError(err, false, false)))
	}
}

// plain is a message of the decoder without the text that it quotes, where that looks like a URL or credentials.
func plain(message string) string {
	message = strings.TrimSpace(message)
	if !strings.ContainsAny(message, "@") && !strings.Contains(message, "://") {
		return message
	}
	place, _, ok := strings.Cut(message, "] ")
	if !ok {
		return "what it says cannot be read"
	}
	return place + "] this is not expected here; see the keys around it"
}
