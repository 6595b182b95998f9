package telemetry

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"

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

var (
	helloForm  = regexp.MustCompile(`^wl/([1-9][0-9]{0,3})-([1-9][0-9]{0,3})/([0-9A-Za-z.+_-]{1,64})$`)
	notInBuild = regexp.MustCompile(`[^0-9A-Za-z.+_-]`)
)

// OwnHello is the Hello of this program, whose build may be anything.
func OwnHello(build string) Hello {
	build = notInBuild.ReplaceAllString(build, "_")
	if build == "" {
		build = "unknown"
	}
	return Hello{Spoken(), build[:min(len(build), 64)]}
}

// ParseHello reads what String gives.
func ParseHello(s string) (Hello, error) {
	m := helloForm.FindStringSubmatch(s)
	if m == nil {
		return Hello{}, errors.New("expected wl/OLDEST-NEWEST/BUILD")
	}
	oldest, _ := strconv.Atoi(m[1]) // of four digits at most
	newest, _ := strconv.Atoi(m[2])
	if oldest > newest {
		return Hello{}, fmt.Errorf("the oldest version %d is newer than the newest %d", oldest, newest)
	}
	return Hello{Versions{uint16(oldest), uint16(newest)}, m[3]}, nil
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
