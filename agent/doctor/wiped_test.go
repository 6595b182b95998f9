package doctor

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wardlink/agent"
)

// TestAWipedGatewayIsNotToBeMended: its TPM without keys and the certificate that is not there are as they should be.
func TestAWipedGatewayIsNotToBeMended(t *testing.T) {
	dir, err := os.MkdirTemp("", "wl") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	kit := kitOf(t, newAuthority(t, "root"), "127.0.0.1:1")
	text, err := kit.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "agent.yaml")
	for path, text := range map[string]string{
		filepath.Join(dir, "kit.json"): string(text),
		config:                         "kit: " + dir + "/kit.json\nstate: " + dir + "/state\ntpm: swtpm:" + dir + "/absent\nsources: [{id: bed-7, mllp: \"127.0.0.1:0\"}]\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "state", "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	status := agent.Status{Gateway: "icu-3-bed-7", Identity: "decommissioned", Revoked: true, Wiped: "told", Kit: kit.ShortFingerprint(), Started: time.Now(), PID: os.Getpid()}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(status) })}
	go func() { _ = server.Serve(socket) }()
	t.Cleanup(func() { server.Close() })

	r := Examine(t.Context(), config)
	said := false
	for _, f := range r.Findings {
		switch f.Area {
		case agent.AreaTPM, AreaCertificate, agent.AreaUplink, agent.AreaBuffer:
			t.Errorf("%+v", f)
		case agent.AreaIdentity:
			said = true
		}
	}
	if !said || r.Level != agent.Stops {
		t.Errorf("%+v", r)
	}
}
