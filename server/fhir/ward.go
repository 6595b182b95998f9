package fhir

import (
	"context"
	"time"

	"wardlink/server/records"
	"wardlink/server/registry"
)

const (
	// event-location of FHIR R4 may stand at an Observation and refers to a Location. Wards are no resources here, so the reference is a
	// logical one: an identifier and a display.
	extensionLocation = "http://hl7.org/fhir/StructureDefinition/event-location"
	systemWards       = "urn:wardlink:ward"
	// The bed that the gateway's configuration binds the device to. R4 allows one event-location, which is the ward's, so this is an
	// extension of our own of the same form.
	extensionBed = "urn:wardlink:bed"
	systemBeds   = "urn:wardlink:bed"
)

// Wards gives the wards in which a gateway has stood.
type Wards interface {
	Wards(ctx context.Context, gateway string) (registry.Wards, error)
}

// wardsOf says in which ward each reading was taken in: the one in which its gateway stood when the gateway had the message. The device's
// own time does not count: its clock may be wrong by years. The result has the order of the readings; "" is unknown.
func (s *Server) wardsOf(ctx context.Context, readings []records.Observation) ([]string, error) {
	out := make([]string, len(readings))
	if s.cfg.Wards == nil {
		return out, nil
	}
	known := make(map[string]registry.Wards)
	for i := range readings {
		o := &readings[i]
		wards, asked := known[o.Gateway]
		if !asked {
			var err error
			if wards, err = s.cfg.Wards.Wards(ctx, o.Gateway); err != nil {
				return nil, err
			}
			known[o.Gateway] = wards
		}
		switch len(wards) {
		case 0:
		case 1: // it has never moved: when does not matter, unless it stood nowhere before
			out[i] = wards[0].Name
		default:
			at, err := s.cfg.Store.ArrivedAt(ctx, o)
			if err != nil {
				return nil, err
			}
			out[i] = wards.At(time.UnixMilli(at))
		}
	}
	return out, nil
}

// located says in the resource where the reading was taken in, and of which bed it is.
func located(r *observation, ward, bed string) *observation {
	if ward != "" {
		r.Extension = append(r.Extension, extension{URL: extensionLocation,
			ValueReference: &reference{Identifier: &identifier{System: systemWards, Value: ward}, Display: ward}})
	}
	if bed != "" {
		r.Extension = append(r.Extension, extension{URL: extensionBed,
			ValueReference: &reference{Identifier: &identifier{System: systemBeds, Value: bed}, Display: bed}})
	}
	return r
}
