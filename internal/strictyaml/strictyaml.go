// Package strictyaml reads the configuration files of agent and server.
package strictyaml

import (
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
)

// Decode reads YAML into the struct that v points to; keys that it does not know are errors. Nil for an empty text. An error names line,
// column and key, and what an unknown key may have been meant for. It never shows what stands there where that could hold credentials,
// mistyped as a key or in the wrong place: errors end in logs and on screens.
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
		return errors.New(plain(yaml.FormatError(err, false, false), string(data), reflect.TypeOf(v)))
	}
}

// plain is a message of the decoder, "[line:column] what", with the key of that line, and without the text that it quotes where that looks
// like a URL or credentials.
func plain(message, text string, t reflect.Type) string {
	place, what, ok := strings.Cut(strings.TrimSpace(message), "] ")
	if !ok { // a type's own words
		place, what = "", message
	}
	if strings.Contains(what, "@") || strings.Contains(what, "://") {
		what = "this is not expected here"
	}
	if !ok {
		return what
	}
	if key, ok := strings.CutPrefix(what, "unknown field \""); ok {
		what += hint(strings.TrimSuffix(key, "\""), t)
	}
	if key := keyAt(place, text); key != "" && !strings.Contains(what, key) {
		what = key + ": " + what
	}
	return place + "] " + what
}

// keyAt is the key that the line of a place begins with; "" for none that could be one of ours.
func keyAt(place, text string) string {
	number, _, _ := strings.Cut(strings.TrimPrefix(place, "["), ":")
	n, err := strconv.Atoi(number)
	lines := strings.Split(text, "\n")
	if err != nil || n < 1 || n > len(lines) {
		return ""
	}
	key, _, ok := strings.Cut(strings.TrimLeft(lines[n-1], " -{"), ":")
	if !ok || len(key) > 32 || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return ""
	}
	return key
}
