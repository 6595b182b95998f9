package server

import (
	"fmt"
	"slices"
	"strings"
)

// The services of a server, which may run in one process or, on PostgreSQL, in several.
const (
	ServiceCA      = "ca"      // enrolment at the gateways' port; holds the issuing keys
	ServiceIngest  = "ingest"  // MQTT at the gateways' port; holds no key
	ServiceRecords = "records" // opens batches, disposes; holds the records key. One process at a time
	ServiceLog     = "log"     // writes the transparency log; holds the log key. One process at a time
	ServiceAPI     = "api"     // the operators' and the hospital's ports, the time; holds the config key, and reads with the records key
)

// Services are those that one process runs.
type Services []string

// AllServices are what a process runs that is told nothing.
func AllServices() Services {
	return Services{ServiceCA, ServiceIngest, ServiceRecords, ServiceLog, ServiceAPI}
}

// ParseServices reads a list such as "ca,records,log,api". "" is all.
func ParseServices(list string) (Services, error) {
	if list == "" {
		return AllServices(), nil
	}
	var out Services
	for _, name := range strings.Split(list, ",") {
		out = append(out, strings.TrimSpace(name))
	}
	return out, out.Check()
}

// Has says whether a service is among them.
func (s Services) Has(name string) bool { return slices.Contains(s, name) }

// String is the list as ParseServices reads it.
func (s Services) String() string { return strings.Join(s, ",") }

// main is the process that holds the ports: what the operators' and the hospital's ports answer is made of what the CA, the records and
// the log know, so these three run in it or stand by in it.
func (s Services) main() bool { return s.Has(ServiceAPI) }

// Node says whether they are those of an ingest node, a process that takes in and does nothing else.
func (s Services) Node() bool { return len(s) == 1 && s[0] == ServiceIngest }

// worker is a process without ports.
func (s Services) worker() bool { return !s.main() && !s.Node() }

// Check says whether one process can run them together.
func (s Services) Check() error {
	seen := map[string]bool{}
	for _, name := range s {
		if !AllServices().Has(name) {
			return fmt.Errorf("services: %.40q is none; expected some of %s", name, AllServices())
		}
		if seen[name] {
			return fmt.Errorf("services: %s is named twice", name)
		}
		seen[name] = true
	}
	switch {
	case len(s) == 0:
		return fmt.Errorf("services: none; expected some of %s", AllServices())
	case s.main() && !(seen[ServiceCA] && seen[ServiceRecords] && seen[ServiceLog]):
		return fmt.Errorf("services: %s: api answers from what ca, records and log know; run ca,records,log,api together, with ingest or without", s)
	case s.worker() && (seen[ServiceCA] || seen[ServiceIngest]):
		return fmt.Errorf("services: %s: expected ca,records,log,api (with ingest or without), or ingest alone, or records, log or both as a standby", s)
	}
	return nil
}
