package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// The parts of FHIR R4 that a comparison reads, written from the standard and shared with nobody.

type bundle struct {
	ResourceType string `json:"resourceType"`
	Link         []struct {
		Relation string `json:"relation"`
		URL      string `json:"url"`
	} `json:"link"`
	Entry []struct {
		Resource json.RawMessage `json:"resource"`
		Search   struct {
			Mode string `json:"mode"`
		} `json:"search"`
	} `json:"entry"`
}

type coding struct {
	System string `json:"system"`
	Code   string `json:"code"`
}

type concept struct {
	Coding []coding `json:"coding"`
}

type observation struct {
	ResourceType string `json:"resourceType"`
	ID           string `json:"id"`
	Meta         struct {
		Security []coding `json:"security"`
	} `json:"meta"`
	Code              concept `json:"code"`
	EffectiveDateTime string  `json:"effectiveDateTime"`
	ValueQuantity     *struct {
		Value  json.RawMessage `json:"value"` // the number's own text; a number in quotes keeps its quotes and so differs
		System string          `json:"system"`
		Code   string          `json:"code"`
	} `json:"valueQuantity"`
	DataAbsentReason *concept `json:"dataAbsentReason"`
}

// read gives what the Observation says, or why it says nothing that could be compared.
func (o *observation) read() (instant, measured, error) {
	if o.ResourceType != "Observation" {
		return instant{}, measured{}, fmt.Errorf("resourceType is %q; expected Observation", o.ResourceType)
	}
	i := slices.IndexFunc(o.Code.Coding, func(c coding) bool { return c.System == systemMDC })
	if i < 0 {
		return instant{}, measured{}, errors.New("no code of " + systemMDC)
	}
	mdc, err := strconv.ParseUint(o.Code.Coding[i].Code, 10, 32)
	if err != nil {
		return instant{}, measured{}, fmt.Errorf("MDC code: %w", err)
	}
	effective, err := time.Parse(time.RFC3339Nano, o.EffectiveDateTime)
	if err != nil {
		return instant{}, measured{}, fmt.Errorf("effectiveDateTime: %w", err)
	}
	// Cutting it off would let two different instants agree.
	if effective.Nanosecond()%int(time.Millisecond) != 0 {
		return instant{}, measured{}, errors.New("effectiveDateTime is finer than the millisecond that was sent")
	}
	// The offset may be any: an instant is compared, not its spelling.
	at := instant{uint32(mdc), effective.UnixMilli()}

	absent := o.DataAbsentReason != nil && len(o.DataAbsentReason.Coding) > 0
	// A value in no or another unit system is still a value: it is compared, and its unit will not agree.
	switch q := o.ValueQuantity; {
	case q != nil && absent:
		return at, measured{}, errors.New("it has a value and a reason for having none")
	case q != nil && len(q.Value) == 0:
		return at, measured{}, errors.New("it has a valueQuantity without a value")
	case q != nil && q.System != systemUCUM:
		return at, measured{string(q.Value), fmt.Sprintf("%s of system %q", q.Code, q.System)}, nil
	case q != nil:
		return at, measured{string(q.Value), q.Code}, nil
	case absent:
		return at, measured{}, nil
	}
	return at, measured{}, errors.New("it has neither a value nor a reason for having none")
}

func (o *observation) marked() bool {
	return slices.Contains(o.Meta.Security, coding{systemSecurity, testData})
}
