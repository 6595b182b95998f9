// Package house holds the tests that keep the house in order: which room may import which, and what the agent's binary links.
package house

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

const module = "wardlink/"

// rule forbids packages below From to import anything below Not, tests aside. Reason is what breaks otherwise.
type rule struct {
	from, not string
	except    []string
	reason    string
}

var rules = []rule{
	{"agent", "server", nil, "the gateway's binary must hold nothing of the server's"},
	{"server", "agent", nil, "the server must not depend on how a gateway is built"},
	{"telemetry", "agent", nil, "formats know neither side"},
	{"telemetry", "server", nil, "formats know neither side"},
	{"telemetry", "buffer", nil, "formats know no storage"},
	{"buffer", "telemetry", nil, "the buffer keeps opaque blobs: it cannot leak what it cannot read"},
	{"buffer", "enroll", nil, "the buffer knows no TPM"},
	{"buffer", "server", nil, "the buffer belongs to the gateway"},
	{"buffer", "github.com/eclipse", nil, "the buffer knows no MQTT"},
	{"enroll", "server", nil, "the gateway's half of enrolment must not link the CA"},
	{"enroll", "agent", nil, "identity does not know what it is used for"},
	{"audit", "server", nil, "a stranger's verifier must not need our server"},
	{"audit", "agent", nil, "a stranger's verifier must not need our agent"},
	{"audit", "telemetry", nil, "the log is verified without knowing what was measured"},
	{"server/trace", "server", nil, "where data stops is judged from facts alone, so that every case can be put to the test"},
	{"server/trace", "net", nil, "it judges, others gather"},
	{"server/trace", "os", nil, "it judges, others gather"},
	{"audit", "net", []string{"net/netip"}, "the verifier reads no network"},
	{"enroll/verify", "net", []string{"net/netip", "net/url"}, "the verifier reads no network"},
	{"enroll/verify", "os", nil, "the verifier reads no disk"},
	{"demo/bedside", module, nil, "the monitor is checked against, so it shares no code with what it checks"},
	{"server/alerts", "server/api", nil, "alerts are raised and delivered whoever may look at them"},
	{"server/alerts", "server/fhir", nil, "an alert holds no record"},
	{"firmware", "agent", nil, "what chooses the agent to start must not hang on an agent"},
	{"firmware", "server", nil, "the gateway's side"},
	{"internal", "agent", nil, "internal is below every domain"},
	{"internal", "server", nil, "internal is below every domain"},
	{"internal", "buffer", nil, "internal is below every domain"},
}

// onlyImporter names packages that exactly one room may import.
var onlyImporter = []struct {
	pkg, room, reason string
	also              []string
}{
	{"github.com/eclipse/paho.mqtt.golang", "agent/uplink", "one MQTT client in the product", []string{"demo", "e2e"}},
	{"github.com/google/go-tpm/tpm2/transport", "enroll/tpm", "one opener of a TPM", nil},
	{"go.etcd.io/bbolt", "buffer/segment", "one place knows how bbolt fails", []string{"buffer", "server/journal"}},
	{"github.com/smallstep/certificates", "server/ca", "one room knows the authority", nil},
	{"github.com/transparency-dev/tessera", "server/translog", "one writer of the log", nil},
	{"modernc.org/sqlite", "server/sqldb", "one room knows the SQL engine", nil},
}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var pkgs []listed
	dec := json.NewDecoder(bytes.NewReader(out))
	for dec.More() {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list found no package: this test would pass by checking nothing")
	}
	return pkgs
}

// in reports whether path is room or below it. Rooms of ours are named without the module.
func in(path, room string) bool {
	path = strings.TrimPrefix(path, module)
	room = strings.TrimPrefix(room, module)
	return room == "" || path == room || strings.HasPrefix(path, room+"/")
}

func isOurs(path string) bool { return strings.HasPrefix(path, module) }

func TestImportsRunOneWay(t *testing.T) {
	used := map[int]bool{}
	for _, p := range list(t, "./...") {
		for _, imp := range p.Imports {
			for i, r := range rules {
				if !in(p.ImportPath, r.from) {
					continue
				}
				used[i] = true
				if r.not == module && !isOurs(imp) || !in(imp, r.not) {
					continue
				}
				// A rule about one of our rooms never means a foreign package of the same name, and the reverse.
				if !strings.Contains(r.not, ".") && r.not != "net" && r.not != "os" && !isOurs(imp) {
					continue
				}
				if (r.not == "net" || r.not == "os") && isOurs(imp) {
					continue
				}
				allowed := in(imp, r.from) && isOurs(imp)
				for _, e := range r.except {
					allowed = allowed || imp == e
				}
				if !allowed {
					t.Errorf("%s imports %s, but %s", p.ImportPath, imp, r.reason)
				}
			}
			for _, o := range onlyImporter {
				if !in(imp, o.pkg) || isOurs(imp) {
					continue
				}
				ok := in(p.ImportPath, o.room)
				for _, a := range o.also {
					ok = ok || in(p.ImportPath, a)
				}
				if !ok {
					t.Errorf("%s imports %s, which only %s may: %s", p.ImportPath, imp, o.room, o.reason)
				}
			}
		}
	}
	for i, r := range rules {
		if !used[i] {
			t.Errorf("rule %d (%s must not import %s) matches no package: the room has moved", i, r.from, r.not)
		}
	}
}

// TestAgentLinksNothingOfTheServer looks at everything that the agent's binary links, not only at direct imports.
func TestAgentLinksNothingOfTheServer(t *testing.T) {
	forbidden := []string{"wardlink/server", "github.com/smallstep", "go.step.sm", "modernc.org", "github.com/transparency-dev",
		"github.com/prometheus", "github.com/spf13", "database/sql"}
	for _, p := range list(t, "./cmd/wardlink-agent") {
		for _, dep := range p.Deps {
			for _, f := range forbidden {
				if dep == f || strings.HasPrefix(dep, f+"/") {
					t.Errorf("wardlink-agent links %s; it stays small and holds nothing of the server's", dep)
				}
			}
		}
	}
}
