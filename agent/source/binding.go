package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"wardlink/telemetry"
)

// Binding says that what one device sends is of one bed. Exactly one of Certificate, Address, MSH3 and Device tells the device.
//
// In this order they also count. A certificate cannot be claimed without its key, nor an address by who is not on the way to it: what a
// connection is bound to holds for all that comes on it, whatever the messages say of themselves. MSH-3 and OBX-18 are claims that every
// peer on the allow list can make; of the two OBX-18 counts for the readings that have it. A message that claims a bed other than its
// connection's is taken in as its connection's, and the conflict is counted and told: content never refuses a message.
type Binding struct {
	ID  string // source id of its own; "": the source's. Not with Device, since a message may hold readings of several devices
	Bed string // what the hospital calls the bed: 1 to 64 printable characters

	Certificate string     // a name in the device's client certificate: a subject alternative name, or the subject's common name
	Address     netip.Addr // the connection's far end
	MSH3        string     // sending application, first component
	Device      string     // OBX-18, first component: the equipment's entity identifier
}

// MaxBed is the longest bed, and the longest name that a binding can wait for, in bytes.
const MaxBed = 64

// BedConflict is how a message's problem says that its device claims another bed than its connection's.
const BedConflict = "is bound to another bed than the connection, whose bed counts"

// by is what the binding goes by, as tools show it.
func (b *Binding) by() string {
	switch {
	case b.Certificate != "":
		return "certificate " + b.Certificate
	case b.Address.IsValid():
		return "address " + b.Address.String()
	case b.MSH3 != "":
		return "msh3 " + b.MSH3
	}
	return "device " + b.Device
}

// check tells what of a binding cannot hold, as keys of the configuration.
func (b *Binding) check() error {
	given := 0
	for _, set := range []bool{b.Certificate != "", b.Address.IsValid(), b.MSH3 != "", b.Device != ""} {
		if set {
			given++
		}
	}
	if given != 1 {
		return fmt.Errorf("expected exactly one of certificate, address, msh3 and device; there are %d", given)
	}
	for _, text := range []struct{ key, value string }{{"bed", b.Bed}, {"certificate", b.Certificate}, {"msh3", b.MSH3}, {"device", b.Device}} {
		if text.value == "" && text.key != "bed" {
			continue
		}
		if text.value == "" || len(text.value) > MaxBed || strings.TrimSpace(text.value) != text.value || !printable(text.value) {
			return fmt.Errorf("%s: expected 1 to %d bytes of printable text without spaces at its ends", text.key, MaxBed)
		}
	}
	switch {
	case strings.ContainsAny(b.MSH3+b.Device, "^|&~"):
		return fmt.Errorf("%s: expected the field's first component alone, without ^ and what follows", strings.Fields(b.by())[0])
	case b.ID != "" && b.Device != "":
		return fmt.Errorf("id: not with device: one message may hold readings of several devices, and its id is part of their keys")
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) // as reports have it
}

// CheckBindings finds what contradicts itself in one source's bindings, and what could never come about: allow are the networks that may
// connect, certificates tells that clients are asked for theirs.
func CheckBindings(bindings []Binding, allow []netip.Prefix, certificates bool) error {
	seen, ids := map[string]int{}, map[string]int{}
	for i := range bindings {
		b := &bindings[i]
		if err := b.check(); err != nil {
			return fmt.Errorf("bindings[%d]: %w", i, err)
		}
		if j, dup := seen[b.by()]; dup {
			return fmt.Errorf("bindings[%d]: %s is bound by bindings[%d] already, to bed %s; a device is of one bed", i, b.by(), j, bindings[j].Bed)
		}
		seen[b.by()] = i
		if j, dup := ids[b.ID]; dup && b.ID != "" {
			return fmt.Errorf("bindings[%d].id: %q is bindings[%d]'s already; each binding with an id has its own", i, b.ID, j)
		}
		ids[b.ID] = i
		if b.Address.IsValid() && len(allow) > 0 && !contains(allow, b.Address) {
			return fmt.Errorf("bindings[%d].address: %s may not connect, since 'allow' does not list it", i, b.Address)
		}
		if b.Certificate != "" && !certificates {
			return fmt.Errorf("bindings[%d].certificate: no device is asked for one; set tls with client_ca, or bind by address", i)
		}
	}
	return nil
}

// bound is a binding at work.
type bound struct {
	Binding
	meter *meter // that of its id; the source's where it has none
	seen  tally  // messages
}

// bindings finds the binding of a connection, a message and a reading.
type bindings struct {
	all                       []*bound
	certificate, msh3, device map[string]*bound
	address                   map[netip.Addr]*bound
	conflicts                 tally
	problem                   atomic.Pointer[string] // the last conflict, for tools; beds of the configuration and nothing of a message
}

func newBindings(list []Binding, own *meter) *bindings {
	bs := &bindings{certificate: map[string]*bound{}, msh3: map[string]*bound{}, device: map[string]*bound{}, address: map[netip.Addr]*bound{}}
	for _, b := range list {
		x := &bound{Binding: b, meter: own}
		if b.ID != "" {
			x.meter = &meter{}
		}
		bs.all = append(bs.all, x)
		switch {
		case b.Certificate != "":
			bs.certificate[b.Certificate] = x
		case b.Address.IsValid():
			bs.address[b.Address] = x
		case b.MSH3 != "":
			bs.msh3[b.MSH3] = x
		default:
			bs.device[b.Device] = x
		}
	}
	return bs
}

// connection is the binding of a connection by its certificate's names and its address; nil for none. A certificate of one bed at the
// address of another is a conflict of each of its messages.
func (bs *bindings) connection(names []string, peer netip.Addr) (b *bound, conflict bool) {
	byAddress := bs.address[peer]
	for _, name := range names {
		if c := bs.certificate[name]; c != nil {
			return c, byAddress != nil && byAddress.Bed != c.Bed
		}
	}
	return byAddress, false
}

// bind gives a message and its readings their beds. conn is what the connection is bound to, or nil. The result is the binding that
// counts for the message; nil for none.
func (bs *bindings) bind(m *telemetry.Message, conn *bound, conflict bool) *bound {
	if len(bs.all) == 0 {
		return nil
	}
	where := "address"
	claimed := bs.msh3[m.Sender]
	if m.Sender == "" {
		claimed = nil
	}
	whose := conn
	switch {
	case conn == nil:
		whose = claimed
	case claimed != nil && claimed.Bed != conn.Bed:
		conflict, where = true, "MSH-3"
	}
	if whose != nil {
		m.Bed = whose.Bed
	}
	var seen []*bound // bindings of devices in this message: few
	of := func(device string, bed *string) {
		b := bs.device[firstComponent(device)]
		switch {
		case b == nil:
		case conn != nil && b.Bed != conn.Bed:
			conflict, where = true, "OBX-18"
		default:
			if b.Bed != m.Bed {
				*bed = b.Bed
			}
			if !slices.Contains(seen, b) {
				seen = append(seen, b)
			}
		}
	}
	if len(bs.device) > 0 {
		for i := range m.Observations {
			of(m.Observations[i].Device, &m.Observations[i].Bed)
		}
		for i := range m.Waveforms {
			of(m.Waveforms[i].Device, &m.Waveforms[i].Bed)
		}
	}
	if whose != nil {
		whose.seen.Add(1)
	}
	for _, b := range seen {
		b.seen.Add(1)
	}
	if conflict {
		bs.conflicts.Add(1)
		text := fmt.Sprintf("%s of bed %s: %s is of another bed", conn.by(), conn.Bed, where)
		bs.problem.Store(&text)
		m.Problems = append(m.Problems, telemetry.Problem{Where: where, Reason: BedConflict})
	}
	return whose
}

// firstComponent is the part of a field before its second component.
func firstComponent(field string) string {
	head, _, _ := strings.Cut(field, "^")
	return strings.TrimSpace(head)
}

// BedStats is what came of one binding.
type BedStats struct {
	Bed          string    `json:"bed"`
	By           string    `json:"by"`           // "address 10.1.2.3"
	ID           string    `json:"id,omitempty"` // source id of its own
	Received     uint64    `json:"received"`     // messages, of a device's binding those with readings of it
	LastReceived time.Time `json:"last_received"`
}

func (bs *bindings) stats() (out []BedStats) {
	for _, b := range bs.all {
		out = append(out, BedStats{Bed: b.Bed, By: b.by(), ID: b.ID, Received: b.seen.Load(), LastReceived: b.seen.at()})
	}
	return out
}
