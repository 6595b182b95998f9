package telemetry

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// The protocol versions that this source speaks, as agent and as server; WIRE.md, "Versions", says what each is.
const (
	ProtocolOldest = 1 // an agent that names none speaks it
	ProtocolNewest = 2
)

// Versions is a range of protocol versions, both ends included.
type Versions struct{ Oldest, Newest uint16 }

// Spoken is the range of this program.
func Spoken() Versions { return Versions{ProtocolOldest, ProtocolNewest} }

// Common is the newest version that both speak; 0 when there is none.
func (v Versions) Common(o Versions) uint16 {
	newest := min(v.Newest, o.Newest)
	if newest < max(v.Oldest, o.Oldest) {
		return 0
	}
	return newest
}

// String is "1-2".
func (v Versions) String() string { return fmt.Sprintf("%d-%d", v.Oldest, v.Newest) }

// Hello is how an agent names what it speaks: in the user name of its CONNECT and in a header of its HTTP requests. It is a claim; who
// the gateway is, its certificate proves.
type Hello struct {
	Versions
	Build string // of the program: 1 to 64 of 0-9 A-Z a-z . + _ -
}

// String is "wl/1-2/0.1.0".
func (h Hello) String() string { return "wl/" + h.Versions.String() + "/" + h.Build }

// HelloHeader carries a Hello in HTTP: of the agent in a request, of the server in the answer to one that has it.
const (
	HelloHeader  = "Wardlink-Agent"
	ServerHeader = "Wardlink-Server"
)

const maxBuild = 64

// buildChar makes a rune fit for a build.
func buildChar(r rune) rune {
	if r < 0x80 && (r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.IndexByte(".+_-", byte(r)) >= 0) {
		return r
	}
	return '_'
}

// OwnHello is the Hello of this program, whose build may be anything.
func OwnHello(build string) Hello {
	build = strings.Map(buildChar, build)
	if build == "" {
		build = "unknown"
	}
	return Hello{Spoken(), build[:min(len(build), maxBuild)]}
}

// ParseHello reads what String gives.
func ParseHello(s string) (Hello, error) {
	rest, ok := strings.CutPrefix(s, "wl/")
	spoken, build, found := strings.Cut(rest, "/")
	first, last, ranged := strings.Cut(spoken, "-")
	oldest, newest := protocolVersion(first), protocolVersion(last)
	if !ok || !found || !ranged || oldest == 0 || newest == 0 || build == "" || len(build) > maxBuild || strings.Map(buildChar, build) != build {
		return Hello{}, errors.New("expected wl/OLDEST-NEWEST/BUILD")
	}
	if oldest > newest {
		return Hello{}, fmt.Errorf("the oldest version %d is newer than the newest %d", oldest, newest)
	}
	return Hello{Versions{oldest, newest}, build}, nil
}

// protocolVersion reads 1 to 9999 in its one decimal form; 0: it is none.
func protocolVersion(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n > 9999 || strconv.FormatUint(n, 10) != s {
		return 0
	}
	return uint16(n)
}

// Welcome is the document "hello": what the server answers to an agent that named its versions.
type Welcome struct {
	Version uint16   // that of the session
	Server  Versions // that the server speaks
	Build   string   // the server's
}

type wireWelcome struct {
	Version uint16 `cbor:"1,keyasint"`
	Oldest  uint16 `cbor:"2,keyasint"`
	Newest  uint16 `cbor:"3,keyasint"`
	Build   string `cbor:"4,keyasint"`
}

// EncodeWelcome is the document's body.
func EncodeWelcome(w Welcome) ([]byte, error) {
	return cbor.Marshal(wireWelcome{w.Version, w.Server.Oldest, w.Server.Newest, w.Build})
}

// DecodeWelcome reads it. Keys that it does not know are of a later version and are left out.
func DecodeWelcome(b []byte) (Welcome, error) {
	var w wireWelcome
	if len(b) > 1024 {
		return Welcome{}, fmt.Errorf("hello of %d bytes; expected at most 1024", len(b))
	}
	if err := cbor.Unmarshal(b, &w); err != nil {
		return Welcome{}, fmt.Errorf("hello: %w", err)
	}
	h, err := ParseHello(Hello{Versions{w.Oldest, w.Newest}, w.Build}.String())
	if err != nil {
		return Welcome{}, fmt.Errorf("hello: %w", err)
	}
	if w.Version < w.Oldest || w.Version > w.Newest {
		return Welcome{}, fmt.Errorf("hello: version %d is not among %s", w.Version, h.Versions)
	}
	return Welcome{Version: w.Version, Server: h.Versions, Build: h.Build}, nil
}
