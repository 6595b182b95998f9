//go:build packages

package packages

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/swtpm"
)

const operator = "/var/lib/wardlink-server/operator/operator.json"

// hospital is a root with both packages, a TPM, and a reader of FHIR.
type hospital struct {
	*root
	server *service
	reader *http.Client
	sent   int // messages that were acknowledged; each has one observation
}

// TestLifeOfAnInstallation is what an engineer does with a gateway and its server, in the order in which it happens. Every message that
// was acknowledged is read from FHIR in the end, through an upgrade, a removal and a purge that came before it was delivered.
func TestLifeOfAnInstallation(t *testing.T) {
	h := &hospital{root: newRoot(t)}
	h.installed()
	h.serve()
	agent := h.enrolled()
	h.send(20)
	h.settled(agent)
	h.watched(agent)

	h.upgraded(agent)
	h.slots()
	h.removed()
	h.purged()
	h.serverStays()
}

// installed: users, directories, modes, and units that start by themselves.
func (h *hospital) installed() {
	said := h.install(packageFile(h.T, "WARDLINK_PACKAGES", "wardlink-agent", "deb"))
	for _, next := range []string{"dtoverlay=tpm-slb9670", "/etc/wardlink/kit.json", "wardlink-agent doctor"} {
		if !strings.Contains(said, next) {
			h.Errorf("the installation does not name the step %q:\n%s", next, said)
		}
	}
	if said = h.install(packageFile(h.T, "WARDLINK_PACKAGES", "wardlink-server", "deb")); !strings.Contains(said, "wardlink-server init") {
		h.Errorf("the installation does not name its next step:\n%s", said)
	}
	for path, want := range map[string]string{
		"/etc/wardlink": "755 root:root", "/etc/wardlink/agent.yaml": "640 root:wardlink-agent",
		"/var/lib/wardlink-agent": "700 wardlink-agent:wardlink-agent", "/var/lib/wardlink-server": "700 wardlink-server:wardlink-server",
		"/var/lib/wardlink": "755 root:root", "/var/lib/wardlink/slots": "755 root:root", "/var/lib/wardlink/slots/a": "755 root:root",
		"/usr/bin/wardlink-agent": "755 root:root", "/usr/lib/wardlink/wardlink-agent": "755 root:root",
	} {
		if got := h.mode(path); got != want {
			h.Errorf("%s has %s; expected %s", path, got, want)
		}
	}
	if groups := h.must("id", "-nG", "wardlink-agent"); strings.TrimSpace(groups) != "wardlink-agent tss" {
		h.Errorf("wardlink-agent is in %s", groups)
	}
	for _, name := range []string{"wardlink-agent", "wardlink-server"} {
		if link := "/etc/systemd/system/multi-user.target.wants/" + name + ".service"; !h.exists(link) {
			h.Errorf("%s does not exist: the unit is not started at boot", link)
		}
	}
	if got := strings.Fields(h.must("dpkg-query", "-W", "-f", "${Conffiles}", "wardlink-agent")); len(got) != 2 || got[0] != "/etc/wardlink/agent.yaml" {
		h.Errorf("conffiles: %q", got)
	}
	if got := h.must("wardlink-agent", "version"); !strings.HasPrefix(got, "wardlink-agent 1.0.0\n") {
		h.Errorf("version: %s", got)
	}
}

// serve makes a server and runs its unit, on its default ports.
func (h *hospital) serve() {
	h.as("wardlink-server", "wardlink-server", "init", "--dir", "/var/lib/wardlink-server", "--name", "127.0.0.1")
	h.server = h.start("wardlink-server")
	h.must("wardlink", "--operator", operator, "provision", "kit", "--out", "/etc/wardlink/kit.json")
	h.must("wardlink", "--operator", operator, "access", "issue", "reader", "--all", "--out", "/root/reader")
	cert, err := tls.LoadX509KeyPair(h.path("/root/reader/reader.crt"), h.path("/root/reader/reader.key"))
	if err != nil {
		h.Fatal(err)
	}
	root, err := os.ReadFile(h.path("/root/reader/root.crt"))
	if err != nil {
		h.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	h.reader = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: pool,
	}}}
}

// enrolled runs the agent with the configuration of the package, but for an emulated TPM, until an operator approved its fingerprint.
func (h *hospital) enrolled() *service {
	factory, err := swtpm.NewFactory(filepath.Join(h.TempDir(), "maker"))
	if err != nil {
		h.Fatal(err)
	}
	state := filepath.Join(h.TempDir(), "tpm")
	if err := factory.Make(context.Background(), state); err != nil {
		h.Fatal(err)
	}
	tpm, err := swtpm.Start(context.Background(), state, h.path("/run/tpm"))
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(tpm.Stop)
	h.must("chmod", "-R", "a+rwX", "/run/tpm") // the group tss, in the field
	h.useTPM()

	agent := h.start("wardlink-agent")
	var fingerprint string
	agent.await("the gateway to wait for approval", func() bool {
		var s struct {
			Waiting string `json:"waiting"`
		}
		out, err := h.try("wardlink-agent", "status", "--json")
		if err != nil || json.Unmarshal([]byte(out), &s) != nil {
			return false
		}
		fingerprint = s.Waiting
		return fingerprint != ""
	})
	h.must("wardlink", "--operator", operator, "gateway", "approve", fingerprint, "--id", "icu-3-bed-7", "--ward", "icu-3")
	return agent
}

// useTPM is an operator's change of a configuration file, which every upgrade must keep.
func (h *hospital) useTPM() {
	f, err := os.OpenFile(h.path("/etc/wardlink/agent.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		h.Fatal(err)
	}
	if _, err := fmt.Fprint(f, "\ntpm: swtpm:/run/tpm/s\n"); err != nil {
		h.Fatal(err)
	}
	if err := f.Close(); err != nil {
		h.Fatal(err)
	}
}

// send gives n messages to the port of the default configuration and waits for each acknowledgement.
func (h *hospital) send(n int) {
	h.Helper()
	conn, err := net.Dial("tcp", ward+":2575")
	if err != nil {
		h.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for range n {
		h.sent++
		msg := fmt.Sprintf("MSH|^~\\&|MON|W|||20260102030405||ORU^R01^ORU_R01|M%d|P|2.6\rPID|||CANARY7^^^&1.2.3&ISO||A^B\rOBR|1|||X\r"+
			"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.1.1.1|%d|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R|||20260102030405+0000\r", h.sent, 30+h.sent)
		if _, err := fmt.Fprintf(conn, "\x0b%s\x1c\r", msg); err != nil {
			h.Fatal(err)
		}
		ack, err := in.ReadString(0x1c)
		if err != nil || !strings.Contains(ack, fmt.Sprintf("MSA|CA|M%d", h.sent)) && !strings.Contains(ack, fmt.Sprintf("MSA|AA|M%d", h.sent)) {
			h.Fatalf("message %d: %q, %v", h.sent, ack, err)
		}
		if _, err := in.ReadByte(); err != nil {
			h.Fatal(err)
		}
	}
}

// arrived: FHIR gives each message that was acknowledged, once.
func (h *hospital) arrived() {
	h.Helper()
	values := map[string]int{}
	h.server.await(fmt.Sprintf("%d observations", h.sent), func() bool {
		resp, err := h.reader.Get("https://127.0.0.1:8443/fhir/Observation?_count=100&patient.identifier=urn:oid:1.2.3%7CCANARY7")
		if err != nil {
			h.Fatal(err)
		}
		defer resp.Body.Close()
		var body struct {
			Entry []struct {
				Resource struct {
					Type  string `json:"resourceType"`
					Value struct {
						Value json.Number `json:"value"`
					} `json:"valueQuantity"`
				} `json:"resource"`
			} `json:"entry"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			h.Fatal(err)
		}
		clear(values)
		for _, e := range body.Entry {
			if e.Resource.Type == "Observation" {
				values[e.Resource.Value.Value.String()]++
			}
		}
		return len(values) >= h.sent
	})
	for n := 1; n <= h.sent; n++ {
		if got := values[fmt.Sprint(30+n)]; got != 1 {
			h.Errorf("message %d is in FHIR %d times", n, got)
		}
	}
}

// settled: the hospital has acknowledged everything, and the agent knows. In FHIR it is earlier: an agent that was told no time yet
// sends everything and forgets nothing.
func (h *hospital) settled(agent *service) {
	h.Helper()
	h.arrived()
	agent.await("an agent on which nothing waits", func() bool { return h.backlog(agent) == 0 })
}

// backlog is how many batches wait, as the agent tells its service manager; -1 while it tells nothing of the kind.
func (h *hospital) backlog(agent *service) int {
	var listening, sources, batches int
	if _, err := fmt.Sscanf(agent.last("STATUS"), "%d of %d sources listen; %d batches wait;", &listening, &sources, &batches); err != nil {
		return -1
	}
	return batches
}

// watched: both services go on telling their manager that they live, and how they are.
func (h *hospital) watched(agent *service) {
	for _, s := range []*service{agent, h.server} {
		before := s.patted()
		s.await("the watchdog of "+s.name+" to be told", func() bool { return s.patted() >= before+2 })
	}
	agent.await("a status that names the gateway", func() bool {
		return strings.Contains(agent.last("STATUS"), "1 of 1 sources listen; 0 batches wait; icu-3-bed-7")
	})
	h.server.await("a status of the server", func() bool { return h.server.last("STATUS") == "1 gateways connected; ready" })
}

// undelivered counts what waits in the buffer of an agent that is stopped, its own reports aside.
func (h *hospital) undelivered() (n int) {
	h.Helper()
	var report struct {
		Lanes []struct {
			Name    string `json:"name"`
			Batches int    `json:"batches"`
			Acked   int    `json:"acked"`
		} `json:"lanes"`
	}
	if err := json.Unmarshal([]byte(h.as("wardlink-agent", "wardlink-agent", "buffer", "check", "--json")), &report); err != nil {
		h.Fatal(err)
	}
	for _, l := range report.Lanes {
		if l.Name != "self" {
			n += l.Batches - l.Acked
		}
	}
	return n
}

// identity is what proves to the hospital who this is.
func (h *hospital) identity() string {
	h.Helper()
	return h.must("sh", "-c", "cd /var/lib/wardlink-agent && find identity -type f | sort | xargs sha256sum")
}

// upgraded: a running agent's package is replaced while 25 messages wait. The former agent runs on until its unit is restarted.
func (h *hospital) upgraded(agent *service) {
	h.server.stop()
	h.send(25)
	agent.await("a status that tells of 25 batches", func() bool { return h.backlog(agent) >= 25 })
	config, err := os.ReadFile(h.path("/etc/wardlink/agent.yaml"))
	if err != nil {
		h.Fatal(err)
	}
	identity := h.identity()
	h.install(packageFile(h.T, "WARDLINK_PACKAGES_NEXT", "wardlink-agent", "deb"))
	h.send(3) // the former agent is still there
	agent.stop()
	if got := h.undelivered(); got != 28 {
		h.Errorf("%d batches wait after the upgrade; 28 messages were acknowledged one by one", got)
	}
	if h.identity() != identity {
		h.Error("the upgrade changed the identity")
	}
	if now, err := os.ReadFile(h.path("/etc/wardlink/agent.yaml")); err != nil || string(now) != string(config) {
		h.Errorf("the upgrade changed the operator's configuration: %v", err)
	}
	if got := h.must("wardlink-agent", "version"); !strings.HasPrefix(got, "wardlink-agent 1.1.0\n") {
		h.Errorf("after the upgrade: %s", got)
	}
	agent = h.start("wardlink-agent")
	h.send(2)
	h.server = h.start("wardlink-server")
	h.settled(agent)
	agent.stop()
}

// slots: an update's slot starts, a damaged one does not, and neither does one that the package has overtaken.
func (h *hospital) slots() {
	slot := "/var/lib/wardlink/slots/b/wardlink-agent"
	if err := os.WriteFile(h.path(slot), []byte("#!/bin/sh\necho slot b: $*\n"), 0o755); err != nil {
		h.Fatal(err)
	}
	current := func(version string) {
		text := fmt.Sprintf(`{"slot":"b","version":%q,"sha256":%q}`, version, strings.Fields(h.must("sha256sum", slot))[0])
		if err := os.WriteFile(h.path("/var/lib/wardlink/slots/current"), []byte(text), 0o644); err != nil {
			h.Fatal(err)
		}
	}
	current("1.2.0")
	for _, user := range []string{"root", "wardlink-agent", "nobody"} {
		out := h.must("setpriv", "--reuid="+user, "--clear-groups", "--", "wardlink-agent", "version", "--json")
		if out != "slot b: version --json\n" {
			h.Errorf("with an update in slot b, %s gets %q", user, out)
		}
	}
	current("1.0.9")
	if out := h.must("wardlink-agent", "version"); !strings.HasPrefix(out, "wardlink-agent 1.1.0\n") {
		h.Errorf("with an older program in slot b: %q", out)
	}
	current("1.2.0")
	if err := os.Truncate(h.path(slot), 10); err != nil {
		h.Fatal(err)
	}
	if out := h.must("wardlink-agent", "version"); !strings.Contains(out, "is damaged") || !strings.Contains(out, "\nwardlink-agent 1.1.0\n") {
		h.Errorf("with a damaged slot b: %q", out)
	}
	if err := os.Remove(h.path("/var/lib/wardlink/slots/current")); err != nil {
		h.Fatal(err)
	}
}

// removed: identity, buffer and configuration stay, the removal says what waits, and the package, installed again, goes on.
func (h *hospital) removed() {
	agent := h.start("wardlink-agent")
	h.server.stop()
	h.send(4)
	agent.stop()
	identity := h.identity()
	said := h.must("apt-get", "remove", "-y", "-q", "wardlink-agent")
	if !strings.Contains(said, "does not have everything yet (4 batches)") {
		h.Errorf("the removal does not say that 4 batches wait:\n%s", said)
	}
	if h.exists("/usr/bin/wardlink-agent") || !h.exists("/etc/wardlink/agent.yaml") || h.identity() != identity {
		h.Error("the removal left the program, or took configuration or identity")
	}
	h.install(packageFile(h.T, "WARDLINK_PACKAGES_NEXT", "wardlink-agent", "deb"))
	if got := h.undelivered(); got != 4 {
		h.Errorf("%d batches wait after removal and installation; expected 4", got)
	}
}

// purged: everything goes but what the hospital does not have, which a new installation delivers.
func (h *hospital) purged() {
	said := h.must("apt-get", "purge", "-y", "-q", "wardlink-agent")
	if !strings.Contains(said, "4 batches that the hospital does not have are NOT") {
		h.Errorf("the purge does not say that it kept 4 batches:\n%s", said)
	}
	for _, gone := range []string{"/var/lib/wardlink-agent", "/var/lib/wardlink", "/etc/wardlink", "/usr/lib/wardlink"} {
		if h.exists(gone) {
			h.Errorf("the purge left %s: %s", gone, h.must("find", gone))
		}
	}
	h.server = h.start("wardlink-server")
	said = h.install(packageFile(h.T, "WARDLINK_PACKAGES_NEXT", "wardlink-agent", "deb"))
	if !strings.Contains(said, "taken up again") {
		h.Errorf("the installation does not say that it takes up what was kept:\n%s", said)
	}
	h.must("wardlink", "--operator", operator, "provision", "kit", "--out", "/etc/wardlink/kit.json")
	h.useTPM()
	agent := h.start("wardlink-agent")
	h.settled(agent)
	agent.stop()

	said = h.must("apt-get", "purge", "-y", "-q", "wardlink-agent")
	left, err := filepath.Glob(h.path("/var/lib/wardlink-agent*"))
	if err != nil || len(left) > 0 {
		h.Errorf("everything was delivered, and the purge left %q, %v:\n%s", left, err, said)
	}
}

// serverStays: neither removal nor purge touches patients' records.
func (h *hospital) serverStays() {
	h.server.stop()
	h.must("apt-get", "remove", "-y", "-q", "wardlink-server")
	said := h.must("apt-get", "purge", "-y", "-q", "wardlink-server")
	if !strings.Contains(said, "is NOT removed") {
		h.Errorf("the purge does not say that it keeps the records:\n%s", said)
	}
	h.install(packageFile(h.T, "WARDLINK_PACKAGES_NEXT", "wardlink-server", "deb"))
	h.server = h.start("wardlink-server")
	h.arrived()
	if _, err := os.Stat(h.path("/etc/wardlink")); !errors.Is(err, os.ErrNotExist) {
		h.Errorf("/etc/wardlink is left: %v", err)
	}
}
