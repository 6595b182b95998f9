package server

import (
	"fmt"
	"slices"
	"strings"
)

// The services of a server, which may run in one process or, on PostgreSQL, in several.
const (
	ServiceCA      = "ca"      // enrolment at the gateways' port; holds the issuing keys. Any number of processes
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

// main is the process that holds the operators' and the hospital's ports.
func (s Services) main() bool { return s.Has(ServiceAPI) }

// Node says whether they are those of an ingest node, a process that takes in and does nothing else.
func (s Services) Node() bool { return len(s) == 1 && s[0] == ServiceIngest }

// enrols says whether they are those of a process that is the CA and nothing else. Any number may run.
func (s Services) enrols() bool { return len(s) == 1 && s[0] == ServiceCA }

// worker is a process without ports.
func (s Services) worker() bool { return !s.main() && !s.Node() && !s.enrols() }

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
	case s.main() && seen[ServiceIngest] && !seen[ServiceCA]:
		return fmt.Errorf("services: %s: a gateway that comes for its session comes there to enrol, too; run ingest with ca, or on nodes of its own", s)
	case s.worker() && (seen[ServiceCA] || seen[ServiceIngest]):
		return fmt.Errorf("services: %s: expected api with any of the others, or ca alone, or ingest alone, or records, log or both as a standby", s)
	}
	return nil
}
