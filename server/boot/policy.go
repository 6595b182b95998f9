package boot

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"wardlink/enroll/verify"
)

// Mode is by what a boot is judged.
type Mode string

// The modes.
const (
	Off   Mode = "off"   // by nothing; it is kept, for an operator to look at
	Learn Mode = "learn" // by the gateway's own first boots
	Allow Mode = "allow" // by the values that operators allowed, release by release
)

// Defaults of a policy. PCRs 0 to 7 are the firmware's: its code and configuration, option ROMs, boot loader, partition table and the state of
// secure boot (TCG PC Client Platform Firmware Profile 1.06, 3.3.4). What comes behind belongs to boot loaders and operating systems, and means
// what these say.
const (
	DefaultPCRs  = 0x00ff
	DefaultAfter = 3
	MaxAfter     = 100
)

// Policy is what one gateway's boots are held to.
type Policy struct {
	Mode  Mode
	PCRs  uint32 // a bit for each that counts
	After int    // of Learn: attestations in a row with the same values, after which they are locked
}

// Check says what is wrong with a policy.
func (p Policy) Check() error {
	switch p.Mode {
	case Off, Learn, Allow:
	default:
		return fmt.Errorf("boot policy %.40q; expected off, learn or allow", p.Mode)
	}
	if p.PCRs == 0 || p.PCRs>>(maxPCR+1) != 0 {
		return fmt.Errorf("PCRs: expected some of 0 to %d", maxPCR)
	}
	if never := p.PCRs &^ verify.QuotedPCRs; never != 0 { // nothing would ever be learned, and nothing ever match
		return fmt.Errorf("PCRs %s: gateways do not quote them; name some of %s", ShowPCRs(never), ShowPCRs(verify.QuotedPCRs))
	}
	if p.After < 1 || p.After > MaxAfter {
		return fmt.Errorf("%d attestations until what was learned is locked; expected 1 to %d", p.After, MaxAfter)
	}
	return nil
}

// ParsePCRs reads a list such as 0-4,7.
func ParsePCRs(text string) (mask uint32, err error) {
	for part := range strings.SplitSeq(text, ",") {
		from, to, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			to = from
		}
		a, err := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err != nil || err2 != nil || a < 0 || b > maxPCR || a > b {
			return 0, fmt.Errorf("PCRs %.60q: expected a list of 0 to %d such as 0-4,7", text, maxPCR)
		}
		for i := a; i <= b; i++ {
			mask |= 1 << i
		}
	}
	return mask, nil
}

// ShowPCRs is what ParsePCRs reads.
func ShowPCRs(mask uint32) string {
	var parts []string
	for i := 0; i <= maxPCR; i++ {
		if mask>>i&1 == 0 {
			continue
		}
		last := i
		for last < maxPCR && mask>>(last+1)&1 != 0 {
			last++
		}
		if part := strconv.Itoa(i); last > i {
			parts = append(parts, part+"-"+strconv.Itoa(last))
		} else {
			parts = append(parts, part)
		}
		i = last
	}
	return strings.Join(parts, ",")
}

// Known is a set of values that are right: what a gateway's own baseline is, or a release.
type Known struct {
	Name string // of the release; "" for the gateway's own
	Measurement
}

// State is what an attestation is, under its policy.
type State string

// The states.
const (
	Unjudged State = "unjudged" // there is no policy
	Learning State = "learning" // the values are the gateway's own, and not locked yet
	Matches  State = "matches"
	Differs  State = "differs"
)

// Mismatch is what differs from the nearest known values.
type Mismatch struct {
	PCR      int     `json:"pcr"`                // the first that differs; -1 when there was no quote
	Also     []int   `json:"also,omitempty"`     // the others of the policy that differ
	Nearest  string  `json:"nearest,omitempty"`  // the release that was compared with; "" for what was learned, or none
	Expected *Digest `json:"expected,omitempty"` // nil: nothing is known
	Got      *Digest `json:"got,omitempty"`      // nil: not quoted
	Entry    *Event  `json:"entry,omitempty"`    // of the gateway's log, the first of this PCR that differs; nil where it is one that is missing, or no log tells
	Was      *Event  `json:"was,omitempty"`      // what stands in its place in the known log; nil where it is an additional one
	Why      string  `json:"why"`                // one sentence for a person
}

// Judge holds a measurement against what is known under a policy of Allow, or of Learn whose baseline is locked. It gives nil for a match, and
// the matching one's name.
func Judge(p Policy, known []Known, m Measurement) (name string, mismatch *Mismatch) {
	if len(m.PCRs) == 0 {
		return "", &Mismatch{PCR: -1, Why: m.Note}
	}
	var nearest *Known
	most := -1
	for i := range known {
		same := 0
		for left := p.PCRs; left != 0; left &= left - 1 {
			if m.Same(known[i].Measurement, left&-left) {
				same++
			}
		}
		if same == bits.OnesCount32(p.PCRs) {
			return known[i].Name, nil
		}
		if same > most {
			most, nearest = same, &known[i]
		}
	}
	out := &Mismatch{PCR: -1}
	for left := p.PCRs; left != 0; left &= left - 1 {
		pcr := bits.TrailingZeros32(left)
		switch {
		case nearest != nil && m.Same(nearest.Measurement, 1<<pcr):
		case out.PCR < 0:
			out.PCR = pcr
		default:
			out.Also = append(out.Also, pcr)
		}
	}
	if got, ok := m.PCRs[out.PCR]; ok {
		out.Got = &got
	}
	if nearest == nil {
		out.Why = "no values are allowed yet"
		return "", out
	}
	out.Nearest = nearest.Name
	if expected, ok := nearest.PCRs[out.PCR]; ok {
		out.Expected = &expected
	}
	out.explain(nearest.Measurement, m)
	return "", out
}

// explain finds the event that made the PCR differ, as far as both logs tell.
func (d *Mismatch) explain(known, m Measurement) {
	was, is := known.of(d.PCR), m.of(d.PCR)
	first := 0
	for first < len(was) && first < len(is) && was[first].Digest == is[first].Digest {
		first++
	}
	switch {
	case d.Got == nil:
		d.Why = fmt.Sprintf("PCR %d is not among those that the gateway quotes", d.PCR)
		return
	case d.Expected == nil:
		d.Why = fmt.Sprintf("the known values have none for PCR %d", d.PCR)
		return
	case len(is) == 0 && m.Note != "":
		d.Why = "no event log tells what made it differ: " + m.Note
		return
	case len(was) == 0 && *d.Expected != (Digest{}):
		d.Why = "nothing tells what made it differ: the known values came without an event log"
		return
	}
	if first < len(is) {
		d.Entry = &is[first]
	}
	if first < len(was) {
		d.Was = &was[first]
	}
	switch {
	case d.Entry != nil && d.Was != nil:
		d.Why = fmt.Sprintf("%s of the event log is another than the known %s", d.Entry, d.Was)
	case d.Entry != nil:
		d.Why = fmt.Sprintf("%s of the event log is additional", d.Entry)
	case d.Was != nil:
		d.Why = fmt.Sprintf("the known %s is missing in the event log", d.Was)
	default:
		d.Why = "both event logs have the same events of it, and the values differ"
	}
}

// String is the whole mismatch in one line.
func (d Mismatch) String() string {
	if d.PCR < 0 {
		return d.Why
	}
	text := fmt.Sprintf("PCR %d: %s", d.PCR, d.Why)
	if len(d.Also) > 0 {
		var more []string
		for _, pcr := range d.Also {
			more = append(more, strconv.Itoa(pcr))
		}
		text += "; PCR " + strings.Join(more, ", ") + " too"
	}
	return text
}

// Equal tells whether two mismatches are the same one, so that a boot that is attested again is not news.
func (d *Mismatch) Equal(o *Mismatch) bool {
	return d.PCR == o.PCR && slices.Equal(d.Also, o.Also) && d.Why == o.Why && digestOf(d.Got) == digestOf(o.Got)
}

func digestOf(d *Digest) Digest {
	if d == nil {
		return Digest{}
	}
	return *d
}

// Detail is the mismatch for an event or an alert.
func (d Mismatch) Detail() map[string]string {
	out := map[string]string{"why": d.Why}
	if d.PCR >= 0 {
		out["pcr"] = strconv.Itoa(d.PCR)
	}
	if len(d.Also) > 0 {
		out["also"] = strings.Trim(fmt.Sprint(d.Also), "[]")
	}
	for name, v := range map[string]*Digest{"expected": d.Expected, "got": d.Got} {
		if v != nil {
			out[name] = v.String()
		}
	}
	if d.Entry != nil {
		out["entry"], out["entry_digest"] = d.Entry.String(), d.Entry.Digest.String()
	}
	if d.Was != nil {
		out["known_entry"], out["known_digest"] = d.Was.String(), d.Was.Digest.String()
	}
	if d.Nearest != "" {
		out["release"] = d.Nearest
	}
	return out
}
