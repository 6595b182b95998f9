// Command record runs a hospital with one gateway, lets its agent enrol, send and be cut off, and writes down all that the agent said. What
// it writes lets later servers show that they still serve that agent; server/testdata/agents/README.md says how and when to use it.
//
//	go run ./e2e/record --bin DIR --commit HASH --out server/testdata/agents/NAME
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wardlink/internal/child"
	"wardlink/internal/recording"
	"wardlink/internal/swtpm"
)

const gateway = "icu-7"

func main() {
	bin := flag.String("bin", "", "`DIR` of the programs to record: wardlink, wardlink-agent, wardlink-server")
	commit := flag.String("commit", "", "`HASH` of their source")
	out := flag.String("out", "", "new `DIR` for the recording")
	flag.Parse()
	if *bin == "" || *commit == "" || *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := record(ctx, *bin, *commit, *out); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

// stage is the hospital that is recorded.
type stage struct {
	ctx         context.Context
	bin, dir    string
	names       map[string]string // addresses by what they are for
	server, box *child.Process
	tpm         *swtpm.Process
	tap         *tap
}

func record(ctx context.Context, bin, commit, out string) (err error) {
	dir, err := os.MkdirTemp("", "wlrec")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &stage{ctx: ctx, bin: bin, dir: dir, names: map[string]string{}}
	defer s.end()
	if err := s.begin(); err != nil {
		return err
	}
	if err := s.play(); err != nil {
		return err
	}
	r := recording.Recording{Commit: commit, TrustDomain: "ward.example", Gateway: gateway}
	if r.Readings, err = s.readings(); err != nil {
		return err
	}
	// A backlog that no server has seen stays in the buffer.
	s.tap.cut()
	for i := range 3 {
		if err := s.send(vitals(fmt.Sprintf("BACK%d", i), "9"+fmt.Sprint(i))); err != nil {
			return err
		}
	}
	s.box.Stop()
	s.server.Stop()
	version, err := s.output("wardlink-agent", "version")
	if err != nil {
		return err
	}
	r.Agent = strings.TrimSpace(string(version))
	r.Sessions, r.Exchanges, r.DeviceKey = s.tap.story()
	if r.RecordsKey, err = pemBytes(filepath.Join(dir, "server/keys/records/records.key")); err != nil {
		return err
	}
	if r.ConfigKey, err = pemBytes(filepath.Join(dir, "server/keys/api/config.key")); err != nil {
		return err
	}
	return s.write(out, r)
}

func (s *stage) write(out string, r recording.Recording) error {
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := recording.Write(out, recording.File, bytes.NewReader(text)); err != nil {
		return err
	}
	db, err := os.Open(filepath.Join(s.dir, "server/wardlink.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	if err := recording.Write(out, recording.Database, db); err != nil {
		return err
	}
	tar := exec.CommandContext(s.ctx, "tar", "--sparse", "--owner=0", "--group=0", "-C", filepath.Join(s.dir, "state"), "-c", "buffer")
	packed, err := tar.Output()
	if err != nil {
		return fmt.Errorf("tar: %w", err)
	}
	if err := recording.Write(out, recording.Buffer, bytes.NewReader(packed)); err != nil {
		return err
	}
	fmt.Printf("%s: %d sessions, %d HTTP exchanges, readings %d bytes\n", out, len(r.Sessions), len(r.Exchanges), len(r.Readings))
	return nil
}

func (s *stage) output(program string, args ...string) ([]byte, error) {
	return child.Output(s.ctx, filepath.Join(s.bin, program), args...)
}

func (s *stage) operator(args ...string) ([]byte, error) {
	return s.output("wardlink", append([]string{"--operator", filepath.Join(s.dir, "server/operator/operator.json")}, args...)...)
}

// begin starts server, tap and gateway.
func (s *stage) begin() (err error) {
	var doors child.Doors
	for _, name := range []string{"gateways", "hospital", "operators", "mllp"} {
		if s.names[name], err = doors.Free(); err != nil {
			return err
		}
	}
	dir := filepath.Join(s.dir, "server")
	if _, err := s.output("wardlink-server", "init", "--dir", dir, "--trust-domain", "ward.example", "--name", "localhost", "--name", "127.0.0.1",
		"--gateways", s.names["gateways"], "--hospital", s.names["hospital"], "--operators", s.names["operators"]); err != nil {
		return err
	}
	if s.server, err = child.Start("server", filepath.Join(s.dir, "server.log"), filepath.Join(s.bin, "wardlink-server"), "run", "--dir", dir); err != nil {
		return err
	}
	if err := child.Until(s.ctx, "the server", []*child.Process{s.server}, func(context.Context) (bool, error) {
		_, err := s.operator("status", "--json")
		return err == nil, nil
	}); err != nil {
		return err
	}
	if s.tap, err = newTap(dir, s.names["gateways"]); err != nil {
		return err
	}
	kit := filepath.Join(s.dir, "kit.json")
	if _, err := s.operator("provision", "kit", "--server", s.tap.addr(), "--out", kit); err != nil {
		return err
	}
	factory, err := swtpm.NewFactory(filepath.Join(s.dir, "factory"))
	if err != nil {
		return err
	}
	if err := factory.Make(s.ctx, filepath.Join(s.dir, "tpm")); err != nil {
		return err
	}
	if s.tpm, err = swtpm.Start(s.ctx, filepath.Join(s.dir, "tpm"), filepath.Join(s.dir, "t")); err != nil {
		return err
	}
	text := fmt.Sprintf("kit: %s\nstate: %s\ntpm: swtpm:%s\nsources: [{id: bed-1, mllp: %q}]\n", kit, filepath.Join(s.dir, "state"), s.tpm.Socket, s.names["mllp"])
	if err := os.WriteFile(s.config(), []byte(text), 0o600); err != nil {
		return err
	}
	var identity struct {
		EK string `json:"ek_sha256"`
	}
	data, err := s.output("wardlink-agent", "identity", "--json", "--config", s.config())
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &identity); err != nil {
		return err
	}
	csv := filepath.Join(s.dir, "gateways.csv")
	if err := os.WriteFile(csv, []byte("id,ek_sha256,site,ward,profile\n"+gateway+","+identity.EK+",s,w,default\n"), 0o600); err != nil {
		return err
	}
	_, err = s.operator("gateway", "import", csv)
	return err
}

func (s *stage) config() string { return filepath.Join(s.dir, "agent.yaml") }

func (s *stage) end() {
	if s.box != nil {
		s.box.Stop()
	}
	if s.server != nil {
		s.server.Stop()
	}
	if s.tpm != nil {
		s.tpm.Stop()
	}
}

func (s *stage) start() (err error) {
	s.box, err = child.Start("agent", filepath.Join(s.dir, "agent.log"), filepath.Join(s.bin, "wardlink-agent"), "run", "--config", s.config())
	return err
}

// play is what happens: two runs of the agent, so two epochs and sealing periods, and every lane.
func (s *stage) play() error {
	if err := s.start(); err != nil {
		return err
	}
	for i := range 5 {
		if err := s.send(vitals(fmt.Sprintf("V%d", i), fmt.Sprint(70+i))); err != nil {
			return err
		}
	}
	if err := s.delivered(); err != nil {
		return err
	}
	s.box.Stop()
	if err := s.start(); err != nil {
		return err
	}
	for _, msg := range []string{waveform("W1"), waveform("W2"), alarm("A1"), vitals("V9", "79"), strings.Replace(vitals("BAD", "80"), "OBX|1|NM", "OBX|one|NM", 1)} {
		if err := s.send(msg); err != nil {
			return err
		}
	}
	return s.delivered()
}

// send delivers one HL7 message and waits for its acknowledgement.
func (s *stage) send(msg string) error {
	var conn net.Conn
	if err := child.Until(s.ctx, "the MLLP listener", []*child.Process{s.box}, func(context.Context) (bool, error) {
		var err error
		conn, err = net.Dial("tcp", s.names["mllp"])
		return err == nil, nil
	}); err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "\x0b"+msg+"\x1c\r"); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, err := conn.Read(answer)
	if err != nil || !strings.Contains(string(answer[:n]), "MSA|CA|") {
		return fmt.Errorf("acknowledgement %q, %v", answer[:n], err)
	}
	return nil
}

// delivered waits until the gateway has nothing left and the server has opened everything.
func (s *stage) delivered() error {
	err := child.Until(s.ctx, "delivery", []*child.Process{s.server, s.box}, func(context.Context) (bool, error) {
		out, err := s.output("wardlink-agent", "status", "--json", "--config", s.config())
		var st struct {
			Uplink struct{ Connected bool }
			Buffer struct{ Lanes []struct{ Waiting int } }
		}
		if err != nil || json.Unmarshal(out, &st) != nil || !st.Uplink.Connected {
			return false, nil
		}
		for _, l := range st.Buffer.Lanes {
			if l.Waiting > 0 {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%w; %s", err, tail(filepath.Join(s.dir, "agent.log")))
	}
	return nil
}

func tail(path string) string {
	text, _ := os.ReadFile(path)
	return string(text[max(0, len(text)-2000):])
}

// readings are what the hospital sees of the gateway's patient; it is asked until it sees everything.
func (s *stage) readings() (json.RawMessage, error) {
	dir := filepath.Join(s.dir, "reader")
	if _, err := s.operator("access", "issue", "reader", "--all", "--out", dir); err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "reader.crt"), filepath.Join(dir, "reader.key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(s.dir, "server/public/root.crt"))
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		return nil, errors.Join(err, errors.New("no root"))
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots}}}
	var out []json.RawMessage
	err = child.Until(s.ctx, "the readings", []*child.Process{s.server}, func(context.Context) (bool, error) {
		answer, err := client.Get("https://" + s.names["hospital"] + "/fhir/Observation?_count=1000&patient.identifier=urn:oid:1.2.3%7CCANARY7")
		if err != nil {
			return false, err
		}
		defer answer.Body.Close()
		var bundle struct {
			Entry []struct {
				Resource json.RawMessage `json:"resource"`
			} `json:"entry"`
		}
		if err := json.NewDecoder(answer.Body).Decode(&bundle); err != nil {
			return false, err
		}
		out = nil
		for _, e := range bundle.Entry {
			if bytes.Contains(e.Resource, []byte(`"Observation"`)) {
				out = append(out, e.Resource)
			}
		}
		return len(out) >= 5+2+2, nil // vitals, the alarm's own, waveforms
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

func pemBytes(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM", path)
	}
	return block.Bytes, nil
}
