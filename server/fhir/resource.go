package fhir

import (
	"encoding/json"

	"wardlink/server/registry"
)

// The resources of FHIR R4 (4.0.1) in the parts that are used here, in the specification's order of elements.

type coding struct {
	System  string `json:"system,omitempty"`
	Code    string `json:"code,omitempty"`
	Display string `json:"display,omitempty"`
}

type codeableConcept struct {
	Coding []coding `json:"coding,omitempty"`
	Text   string   `json:"text,omitempty"`
}

type identifier struct {
	System string `json:"system,omitempty"`
	Value  string `json:"value,omitempty"`
}

type reference struct {
	Reference  string      `json:"reference,omitempty"`
	Identifier *identifier `json:"identifier,omitempty"`
	Display    string      `json:"display,omitempty"`
}

type extension struct {
	URL            string     `json:"url"`
	ValueCode      string     `json:"valueCode,omitempty"`
	ValueReference *reference `json:"valueReference,omitempty"`
	ValueInstant   string     `json:"valueInstant,omitempty"`
	ValueInteger   *int64     `json:"valueInteger,omitempty"`
	About          *element   `json:"_valueInstant,omitempty"` // what is said about the instant
}

// element is what stands beside a primitive element, under its name with an underscore: here, why there is none.
type element struct {
	Extension []extension `json:"extension"`
}

type meta struct {
	Profile  []string `json:"profile,omitempty"`
	Security []coding `json:"security,omitempty"`
}

// quantity keeps the number as the text that the device sent: "98.60" is another statement than 98.6.
type quantity struct {
	Value  json.Number `json:"value"`
	Unit   string      `json:"unit,omitempty"`
	System string      `json:"system,omitempty"`
	Code   string      `json:"code,omitempty"`
}

type observation struct {
	ResourceType      string            `json:"resourceType"`
	ID                string            `json:"id"`
	Meta              *meta             `json:"meta,omitempty"`
	Extension         []extension       `json:"extension,omitempty"`
	Status            string            `json:"status"`
	Category          []codeableConcept `json:"category,omitempty"`
	Code              codeableConcept   `json:"code"`
	Subject           *reference        `json:"subject,omitempty"`
	EffectiveDateTime string            `json:"effectiveDateTime,omitempty"`
	EffectiveAbsent   *element          `json:"_effectiveDateTime,omitempty"`
	EffectivePeriod   *period           `json:"effectivePeriod,omitempty"`
	Issued            string            `json:"issued,omitempty"`
	ValueQuantity     *quantity         `json:"valueQuantity,omitempty"`
	ValueString       string            `json:"valueString,omitempty"`
	ValueSampledData  *sampledData      `json:"valueSampledData,omitempty"`
	DataAbsentReason  *codeableConcept  `json:"dataAbsentReason,omitempty"`
	Interpretation    []codeableConcept `json:"interpretation,omitempty"`
	Device            *reference        `json:"device,omitempty"`
}

type patient struct {
	ResourceType string       `json:"resourceType"`
	ID           string       `json:"id"`
	Identifier   []identifier `json:"identifier"`
}

type bundle struct {
	ResourceType string  `json:"resourceType"`
	Type         string  `json:"type"`
	Total        *int    `json:"total,omitempty"`
	Link         []link  `json:"link,omitempty"`
	Entry        []entry `json:"entry,omitempty"`
}

type link struct {
	Relation string `json:"relation"`
	URL      string `json:"url"`
}

type entry struct {
	FullURL  string      `json:"fullUrl,omitempty"`
	Resource any         `json:"resource"`
	Search   *entryMatch `json:"search,omitempty"`
}

type entryMatch struct {
	Mode string `json:"mode"`
}

type operationOutcome struct {
	ResourceType string  `json:"resourceType"`
	Issue        []issue `json:"issue"`
}

type issue struct {
	Severity    string `json:"severity"`
	Code        string `json:"code"`
	Diagnostics string `json:"diagnostics,omitempty"`
}

type capabilityStatement struct {
	ResourceType   string           `json:"resourceType"`
	Status         string           `json:"status"`
	Date           string           `json:"date"`
	Kind           string           `json:"kind"`
	Software       software         `json:"software"`
	Implementation implementation   `json:"implementation"`
	FHIRVersion    string           `json:"fhirVersion"`
	Format         []string         `json:"format"`
	Rest           []capabilityRest `json:"rest"`
}

type software struct {
	Name string `json:"name"`
}

type implementation struct {
	Description string `json:"description"`
	URL         string `json:"url"`
}

type capabilityRest struct {
	Mode     string               `json:"mode"`
	Security capabilitySecurity   `json:"security"`
	Resource []capabilityResource `json:"resource"`
}

type capabilitySecurity struct {
	Description string `json:"description"`
}

type capabilityResource struct {
	Type        string                  `json:"type"`
	Interaction []capabilityInteraction `json:"interaction"`
	SearchParam []capabilityParam       `json:"searchParam,omitempty"`
}

type capabilityInteraction struct {
	Code string `json:"code"`
}

type capabilityParam struct {
	Name          string `json:"name"`
	Type          string `json:"type"`
	Documentation string `json:"documentation,omitempty"`
}

const (
	systemMDC       = registry.SystemMDC
	systemLOINC     = registry.SystemLOINC
	systemUCUM      = "http://unitsofmeasure.org"
	systemCategory  = "http://terminology.hl7.org/CodeSystem/observation-category"
	systemAbsent    = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
	systemIntegrity = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
	systemActReason = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
	systemFlags     = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
	systemOwnCodes  = "urn:wardlink:code-system:"     // a device's own code system, by its name in OBX-3.3
	systemMarks     = "urn:wardlink:observation-mark" // implausible, quarantined, unit-misfit, unit-unknown
	extensionAbsent = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
	// When the gateway had the message, by the hospital's clock, of a reading whose own time could not be read. Its uncertainty is in
	// milliseconds.
	extensionArrived     = "urn:wardlink:gateway-received"
	extensionUncertainty = "urn:wardlink:uncertainty-ms"
	extensionGateway     = "http://hl7.org/fhir/StructureDefinition/observation-gatewayDevice"
)

// capabilities says what this server does: read and search, nothing that writes.
func (s *Server) capabilities(base string) capabilityStatement {
	readAndSearch := []capabilityInteraction{{Code: "read"}, {Code: "search-type"}}
	return capabilityStatement{
		ResourceType: "CapabilityStatement", Status: "active", Date: "2026-11-27", Kind: "instance",
		Software:       software{Name: "wardlink"},
		Implementation: implementation{Description: "Observations of bedside devices; waveforms are valueSampledData, a chunk each", URL: base},
		FHIRVersion:    "4.0.1",
		Format:         []string{"application/fhir+json"},
		Rest: []capabilityRest{{
			Mode:     "server",
			Security: capabilitySecurity{Description: "Mutual TLS with a certificate of wardlink access issue. An account sees what is in its scope: what it narrows says so by an OperationOutcome in the bundle, what is outside is refused. Each read is recorded in a transparency log."},
			Resource: []capabilityResource{
				{Type: "Observation", Interaction: readAndSearch, SearchParam: []capabilityParam{
					{Name: "patient", Type: "reference", Documentation: "Patient/id, several separated by commas; patient.identifier=system|value is the other way; patient:missing=true finds readings of devices that knew no patient"},
					{Name: "code", Type: "token", Documentation: "system|code or code, several separated by commas; MDC and LOINC"},
					{Name: "date", Type: "date", Documentation: "eq, ge, gt, le, lt; may be given several times; samples are found by the first of them; what has no time is found by when the gateway received it"},
				}},
				{Type: "Patient", Interaction: readAndSearch, SearchParam: []capabilityParam{
					{Name: "identifier", Type: "token", Documentation: "system|value or value, several separated by commas"},
				}},
			},
		}},
	}
}
