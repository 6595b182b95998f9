package server

import (
	"strings"
	"testing"
)

// TestServicesThatRunTogether: a process may run what its ports answer from, take in alone, or stand by; nothing else, and on SQLite everything.
func TestServicesThatRunTogether(t *testing.T) {
	for list, want := range map[string]string{
		"": "", "ca,ingest,records,log,api": "", "ca,records,log,api": "", "api, log,records,ca": "", "ingest": "", "records": "", "log": "", "records,log": "",
		"api": "", "ca": "", "records,api,log": "", "ca,api": "", "log,api": "",
		"ca,ingest": "expected", "ca,records": "expected", "ingest,records": "expected", "api,ingest": "enrol", "records,log,api,ingest": "enrol",
		"records,records": "twice", "mqtt": "none", "records,": "none",
	} {
		s, err := ParseServices(list)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, expected %q", list, err, want)
		}
		if err != nil {
			continue
		}
		sqlite, shared := DefaultConfig(), DefaultConfig()
		shared.Database = "postgres://wardlink@db.example/wardlink"
		if s.main() && !s.Has(ServiceCA) {
			if _, err := shared.run(s); err == nil || !strings.Contains(err.Error(), "'ca:'") {
				t.Errorf("%q without the addresses of the CA: %v", list, err)
			}
			shared.CA = []string{"10.1.0.21:8883"}
		}
		if _, err := sqlite.run(s); (err == nil) != (len(s) == 5) {
			t.Errorf("%q on SQLite: %v", list, err)
		}
		if _, err := shared.run(s); (err == nil) != !s.Node() {
			t.Errorf("%q on a server's directory: %v", list, err)
		}
		node := shared
		node.Services = Services{ServiceIngest}
		if _, err := node.run(s); (err == nil) != s.Node() {
			t.Errorf("%q on a node's directory: %v", list, err)
		}
	}
}

// TestNoPasswordInTheConfiguration: a URL with a password is refused, without being repeated; the file of the password must be its owner's alone.
func TestNoPasswordInTheConfiguration(t *testing.T) {
	for _, url := range []string{
		"postgres://wardlink:hunter2@db.example/wardlink", "postgres://wardlink@db.example/wardlink?password=hunter2", "postgres://db.example/hunter2",
		"mysql://hunter2@db/x", "postgres://hunter2@db", "postgres://hunter2\x7f@db/x",
	} {
		c := DefaultConfig()
		c.TrustDomain, c.Names, c.Database = "ward.example", []string{"localhost"}, url
		if err := c.Check(); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
