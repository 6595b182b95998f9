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

type quantity struct {
	Value  json.RawMessage `json:"value"` // the number's own text; a number in quotes keeps its quotes and so differs
	Unit   string          `json:"unit"`
	System string          `json:"system"`
	Code   string          `json:"code"`
}

// unit is the quantity's unit in the form of unitOf. One of no or another system is still a unit: it is compared, and will not agree.
func (q *quantity) unit() string {
	switch {
	case q.System == systemUCUM:
		return q.Code
	case q.System == "" && q.Code == "":
		return bareUnit(q.Unit)
	}
	return fmt.Sprintf("%s of system %q", q.Code, q.System)
}

type observation struct {
	ResourceType string `json:"resourceType"`
	ID           string `json:"id"`
	Meta         struct {
		Security []coding `json:"security"`
	} `json:"meta"`
	Status            string  `json:"status"`
	Code              concept `json:"code"`
	EffectiveDateTime string  `json:"effectiveDateTime"`
	EffectivePeriod   struct {
		Start string `json:"start"`
		End   string `json:"end"`
	} `json:"effectivePeriod"`
	ValueQuantity    *quantity    `json:"valueQuantity"`
	ValueSampledData *sampledData `json:"valueSampledData"`
	DataAbsentReason *concept     `json:"dataAbsentReason"`
}

// read gives what the Observation of a reading says, or why it says nothing that could be compared.
func (o *observation) read() (instant, measured, error) {
	c, err := o.code()
	if err != nil {
		return instant{}, measured{}, err
	}
	at := instant{code: c}
	if at.time, err = milliseconds(o.EffectiveDateTime); err != nil {
		return instant{}, measured{}, fmt.Errorf("effectiveDateTime: %w", err)
	}
	absent := o.absent()
	switch q := o.ValueQuantity; {
	case q != nil && absent:
		return at, measured{}, errors.New("it has a value and a reason for having none")
	case q != nil && len(q.Value) == 0:
		return at, measured{}, errors.New("it has a valueQuantity without a value")
	case q != nil:
		return at, measured{string(q.Value), q.unit()}, nil
	case absent:
		return at, measured{}, nil
	}
	return at, measured{}, errors.New("it has neither a value nor a reason for having none")
}

func (o *observation) absent() bool {
	return o.DataAbsentReason != nil && len(o.DataAbsentReason.Coding) > 0
}

// code is what was measured: the MDC code, or where there is none the monitor's own.
func (o *observation) code() (code, error) {
	if o.ResourceType != "Observation" {
		return code{}, fmt.Errorf("resourceType is %q; expected Observation", o.ResourceType)
	}
	for _, system := range []string{systemMDC, systemLocal} {
		i := slices.IndexFunc(o.Code.Coding, func(c coding) bool { return c.System == system })
		if i < 0 {
			continue
		}
		value := o.Code.Coding[i].Code
		if _, err := strconv.ParseUint(value, 10, 32); err != nil && system == systemMDC {
			return code{}, fmt.Errorf("MDC code: %w", err)
		}
		return code{system, value}, nil
	}
	return code{}, errors.New("no code of " + systemMDC + " or " + systemLocal)
}

// milliseconds reads a FHIR dateTime or instant. The offset may be any: an instant is compared, not its spelling.
func milliseconds(text string) (int64, error) {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return 0, err
	}
	// Cutting it off would let two different instants agree.
	if at.Nanosecond()%int(time.Millisecond) != 0 {
		return 0, errors.New("it is finer than the millisecond that was sent")
	}
	return at.UnixMilli(), nil
}

func (o *observation) marked() bool {
	return slices.Contains(o.Meta.Security, coding{systemSecurity, testData})
}
