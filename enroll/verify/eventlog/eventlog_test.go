package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"testing"
)

func digest(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// sample is the log of a boot: firmware, its configuration, a boot loader and the end of the firmware's part.
func sample() []byte {
	log := Append(Header(), 0, NoAction, [32]byte{}, []byte("StartupLocality\x00\x03"))
	log = Append(log, 0, CRTMVersion, digest("1.2"), []byte("1\x00.\x002\x00\x00\x00"))
	log = Append(log, 7, variableConfig, digest("secure boot"), variable("SecureBoot", []byte{1}))
	log = Append(log, 4, BootApplication, digest("loader"), Image(`\EFI\debian\grubaa64.efi`))
	log = Append(log, 4, Separator, digest("\x00\x00\x00\x00"), make([]byte, 4))
	return Append(log, 8, IPL, digest("linux"), []byte("grub_cmd: linux /vmlinuz\x00"))
}

func variable(name string, data []byte) []byte {
	out := binary.LittleEndian.AppendUint64(make([]byte, 16), uint64(len(name)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	for _, c := range []byte(name) {
		out = append(out, c, 0)
	}
	return append(out, data...)
}

func TestParse(t *testing.T) {
	l, err := Parse(sample())
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		pcr        int
		name, text string
	}{
		{0, "EV_NO_ACTION", "Spec ID Event03"}, {0, "EV_NO_ACTION", "StartupLocality"}, {0, "EV_S_CRTM_VERSION", "1.2"}, {7, "EV_EFI_VARIABLE_DRIVER_CONFIG", "SecureBoot"},
		{4, "EV_EFI_BOOT_SERVICES_APPLICATION", `\EFI\debian\grubaa64.efi`}, {4, "EV_SEPARATOR", "00000000"}, {8, "EV_IPL", "grub_cmd: linux /vmlinuz"},
	}
	if len(l.Events) != len(want) || l.SHA1 {
		t.Fatalf("%d events, SHA-1 %v", len(l.Events), l.SHA1)
	}
	for i, w := range want {
		if e := l.Events[i]; e.Index != i || e.PCR != w.pcr || e.Type.String() != w.name || e.Describe() != w.text {
			t.Errorf("event %d: %d, PCR %d %s %q; want %+v", i, e.Index, e.PCR, e.Type, e.Describe(), w)
		}
	}
	if got := Type(0x1234).String(); got != "event type 0x1234" {
		t.Error(got)
	}
}

// The PCRs by hand: what is extended, in which order, from where PCR 0 starts.
func TestReplay(t *testing.T) {
	l, err := Parse(sample())
	if err != nil {
		t.Fatal(err)
	}
	var want [24][32]byte
	for i := 17; i <= 22; i++ {
		want[i] = [32]byte(bytes.Repeat([]byte{0xff}, 32))
	}
	want[0][31] = 3
	for _, x := range []struct {
		pcr int
		of  string
	}{{0, "1.2"}, {7, "secure boot"}, {4, "loader"}, {4, "\x00\x00\x00\x00"}, {8, "linux"}} {
		d := digest(x.of)
		want[x.pcr] = sha256.Sum256(slices.Concat(want[x.pcr][:], d[:]))
	}
	if l.Replay() != want {
		t.Error("the log replays to other values")
	}
	if pcr, found := l.Unaccounted(0xffffff, want); found {
		t.Errorf("PCR %d is not accounted for", pcr)
	}
	// The first is named, and only what is selected counts.
	want[4][0]++
	want[8][0]++
	if pcr, found := l.Unaccounted(0xffff, want); !found || pcr != 4 {
		t.Errorf("PCR %d, %v; expected 4", pcr, found)
	}
	if pcr, found := l.Unaccounted(0xffff&^(1<<4), want); !found || pcr != 8 {
		t.Errorf("PCR %d, %v; expected 8", pcr, found)
	}
	if _, found := l.Unaccounted(0xff&^(1<<4), want); found {
		t.Error("a PCR that is not selected counts")
	}
	// The value of an empty PCR and of one event, by TPM 2.0 Part 1, 17.2: SHA-256 of 64 zero bytes.
	one, err := Parse(Append(Header(), 1, Separator, [32]byte{}, nil))
	if err != nil {
		t.Fatal(err)
	}
	if v := one.Replay()[1]; hex.EncodeToString(v[:]) != "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b" {
		t.Errorf("%x", v)
	}
}

// TestStartup: only the event that is meant for it says where PCR 0 begins.
func TestStartup(t *testing.T) {
	for name, row := range map[string]struct {
		pcr  int
		data string
		want byte
	}{
		"right": {0, "StartupLocality\x00\x03", 3}, "of another PCR": {1, "StartupLocality\x00\x03", 0}, "longer": {0, "StartupLocality\x00\x03\x04", 0},
		"another name": {0, "StartupLocalitx\x00\x03", 0},
	} {
		l, err := Parse(Append(Header(), row.pcr, NoAction, [32]byte{}, []byte(row.data)))
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Replay()[0]; got != [32]byte{31: row.want} {
			t.Errorf("%s: PCR 0 is %x", name, got)
		}
	}
}

func TestLegacy(t *testing.T) {
	event := func(pcr, kind uint32, data string) []byte {
		out := binary.LittleEndian.AppendUint32(nil, pcr)
		out = append(binary.LittleEndian.AppendUint32(out, kind), make([]byte, 20)...)
		return append(binary.LittleEndian.AppendUint32(out, uint32(len(data))), data...)
	}
	for name, first := range map[string][]byte{
		"no header": event(0, 8, "1.2"), "the header of its time": event(0, 3, "Spec ID Event00\x00 and more"),
	} {
		l, err := Parse(append(first, event(4, 5, "Calling INT 19h")...))
		if err != nil {
			t.Fatal(name, err)
		}
		if !l.SHA1 || len(l.Events) != 2 || l.Events[1].PCR != 4 || l.Events[1].Describe() != "Calling INT 19h" {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

// spec is a header with this list of algorithms, and what comes behind it.
func spec(count uint32, list []uint16, rest ...byte) []byte {
	data := append([]byte(signature3), make([]byte, 8)...)
	data = binary.LittleEndian.AppendUint32(data, count)
	for _, v := range list {
		data = binary.LittleEndian.AppendUint16(data, v)
	}
	data = append(data, rest...)
	out := binary.LittleEndian.AppendUint32(nil, 0)
	out = append(binary.LittleEndian.AppendUint32(out, 3), make([]byte, 20)...)
	return append(binary.LittleEndian.AppendUint32(out, uint32(len(data))), data...)
}

func TestEachCheckStandsAlone(t *testing.T) {
	event2 := func(pcr uint32, algorithms ...uint16) []byte {
		out := binary.LittleEndian.AppendUint32(nil, pcr)
		out = binary.LittleEndian.AppendUint32(out, 4)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(algorithms)))
		for _, a := range algorithms {
			out = append(binary.LittleEndian.AppendUint16(out, a), make([]byte, map[uint16]int{4: 20, 11: 32}[a])...)
		}
		return binary.LittleEndian.AppendUint32(out, 0)
	}
	two := spec(2, []uint16{4, 20, 11, 32}, 0)
	many := Header()
	for range maxEvents {
		many = Append(many, 0, Separator, [32]byte{}, nil)
	}
	miscounted := append(slices.Clone(two), event2(4, 4, 11)...)
	binary.LittleEndian.PutUint32(miscounted[len(two)+8:], 3)
	uncounted := spec(0, nil)
	uncounted = uncounted[:len(uncounted)-4]
	binary.LittleEndian.PutUint32(uncounted[8+20:], uint32(len(signature3)+8))
	claims := sample()
	binary.LittleEndian.PutUint32(claims[len(claims)-len("grub_cmd: linux /vmlinuz\x00")-4:], 0xffffffff)
	for name, row := range map[string]struct {
		log  []byte
		want error
	}{
		"nothing":                        {nil, ErrEmpty},
		"two algorithms":                 {append(slices.Clone(two), event2(4, 4, 11)...), nil},
		"two algorithms in other order":  {append(slices.Clone(two), event2(4, 11, 4)...), nil},
		"a vendor's words":               {spec(1, []uint16{11, 32}, 3, 1, 2, 3), nil},
		"no PCR of what is not extended": {Append(Header(), -1, NoAction, [32]byte{}, nil), nil},
		"as many events as may be":       {many[:len(many)-len(event2(0, 11))], nil},
		"an event more":                  {many, ErrMany},
		"cut in an event":                {sample()[:len(sample())-1], ErrShort},
		"a length beyond the end":        {claims, ErrShort},
		"cut in the first event":         {sample()[:20], ErrShort},
		"PCR 24":                         {Append(Header(), 24, Separator, [32]byte{}, nil), ErrPCR},
		"no PCR of what is extended":     {Append(Header(), -1, Separator, [32]byte{}, nil), ErrPCR},
		"a header without its count":     {uncounted, ErrHeader},
		"a header that is cut":           {spec(2, []uint16{4, 20, 11}), ErrHeader},
		"a header with more behind":      {spec(1, []uint16{11, 32}, 0, 9), ErrHeader},
		"a vendor's words missing":       {spec(1, []uint16{11, 32}, 4, 1), ErrHeader},
		"no algorithm":                   {spec(0, nil, 0), ErrAlgorithms},
		"nine algorithms":                {spec(9, []uint16{11, 32}, 0), ErrAlgorithms},
		"an algorithm of no size":        {spec(2, []uint16{11, 32, 4, 0}, 0), ErrAlgorithms},
		"an algorithm of 65 bytes":       {spec(2, []uint16{11, 32, 99, 65}, 0), ErrAlgorithms},
		"SHA-256 of 20 bytes":            {spec(1, []uint16{11, 20}, 0), ErrAlgorithms},
		"one algorithm twice":            {spec(2, []uint16{11, 32, 11, 32}, 0), ErrAlgorithms},
		"SHA-1 alone, in the new format": {spec(1, []uint16{4, 20}, 0), ErrNoSHA256},
		"a digest too few":               {append(slices.Clone(two), event2(4, 11)...), ErrDigests},
		"more digests than it has":       {miscounted, ErrDigests},
		"cut between two digests":        {append(slices.Clone(two), event2(4, 4, 11)[:12+2+20]...), ErrShort},
		"a digest twice":                 {append(slices.Clone(two), event2(4, 11, 11)...), ErrDigests},
		"a digest of no algorithm":       {append(Header(), event2(4, 12)...), ErrDigests},
	} {
		if l, err := Parse(row.log); !errors.Is(err, row.want) || (l == nil) == (err == nil) {
			t.Errorf("%s: %v; expected %v", name, err, row.want)
		}
	}
}

// Texts are for a person's terminal and for the audit log, and come from a stranger.
func TestDescribe(t *testing.T) {
	long := bytes.Repeat([]byte("x"), 200)
	for name, row := range map[string]struct {
		e    Event
		want string
	}{
		"an escape":              {Event{Type: IPL, Data: []byte("a\x1b[2J")}, ""},
		"a long text":            {Event{Type: IPL, Data: long}, string(long[:77]) + "..."},
		"no path":                {Event{Type: BootApplication, Data: make([]byte, 32)}, ""},
		"a path node too long":   {Event{Type: BootApplication, Data: append(make([]byte, 32), 4, 4, 200, 0)}, ""},
		"a path node of no size": {Event{Type: BootApplication, Data: append(make([]byte, 32), 1, 1, 0, 0, 9)}, ""},
		"a name beyond the end":  {Event{Type: variableBoot, Data: append(make([]byte, 16), bytes.Repeat([]byte{0xff}, 20)...)}, ""},
		"a short variable":       {Event{Type: variableBoot, Data: make([]byte, 31)}, ""},
		"nothing":                {Event{Type: IPL}, ""},
	} {
		if got := row.e.Describe(); got != row.want {
			t.Errorf("%s: %q; expected %q", name, got, row.want)
		}
	}
}

// Nothing that a gateway sends panics, takes more than its own bytes, or reads as events that it does not hold.
func FuzzParse(f *testing.F) {
	f.Add(sample())
	f.Add(append(spec(2, []uint16{4, 20, 11, 32}, 0), make([]byte, 80)...))
	f.Add(spec(1, []uint16{11, 32}, 3, 1, 2, 3))
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse(data)
		if (l == nil) == (err == nil) {
			t.Fatalf("%v with %v", l, err)
		}
		if err != nil {
			return
		}
		l.Replay()
		size := 0
		for i, e := range l.Events {
			size += 32 + len(e.Data)
			if e.Index != i || len(e.Describe()) > maxText {
				t.Fatalf("event %d: %d, %q", i, e.Index, e.Describe())
			}
		}
		if size > len(data) {
			t.Fatalf("%d bytes of events in a log of %d", size, len(data))
		}
	})
}
