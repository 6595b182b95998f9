package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"wardlink/enroll"
	"wardlink/internal/child"
	"wardlink/internal/swtpm"
	"wardlink/telemetry/hl7"
)

// stage is a hospital with one gateway.
type stage struct {
	ctx                             context.Context
	bin, dir                        string
	doors                           child.Doors
	gateways, hospital, admin, mllp string
	server, agent                   *child.Process
	tpm                             *swtpm.Process
}

func (s *stage) program(name string) string { return filepath.Join(s.bin, name) }
func (s *stage) path(name string) string    { return filepath.Join(s.dir, name) }

func (s *stage) output(program string, args ...string) ([]byte, error) {
	return child.Output(s.ctx, s.program(program), args...)
}

func (s *stage) operator(args ...string) ([]byte, error) {
	return s.output("wardlink", append([]string{"--operator", s.path("server/operator/operator.json")}, args...)...)
}

func (s *stage) begin() (err error) {
	for _, a := range []*string{&s.gateways, &s.hospital, &s.admin, &s.mllp} {
		if *a, err = s.doors.Free(); err != nil {
			return err
		}
	}
	if _, err := s.output("wardlink-server", "init", "--dir", s.path("server"), "--trust-domain", "ward.example", "--name", "127.0.0.1",
		"--gateways", s.gateways, "--hospital", s.hospital, "--operators", s.admin); err != nil {
		return err
	}
	if err := s.serve(); err != nil {
		return err
	}
	if _, err := s.operator("provision", "kit", "--server", s.gateways, "--out", s.path("kit.json")); err != nil {
		return err
	}
	factory, err := swtpm.NewFactory(s.path("factory"))
	if err != nil {
		return err
	}
	if err := factory.Make(s.ctx, s.path("tpm")); err != nil {
		return err
	}
	if s.tpm, err = swtpm.Start(s.ctx, s.path("tpm"), s.path("t")); err != nil {
		return err
	}
	if err := s.configure("state", "swtpm:"+s.tpm.Socket); err != nil {
		return err
	}
	var identity struct {
		EK string `json:"ek_sha256"`
	}
	data, err := s.output("wardlink-agent", "identity", "--json", "--config", s.path("agent.yaml"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &identity); err != nil {
		return err
	}
	if err := os.WriteFile(s.path("gateways.csv"), []byte("id,ek_sha256,site,ward,profile\nicu-7,"+identity.EK+",s,w,default\n"), 0o600); err != nil {
		return err
	}
	if _, err = s.operator("gateway", "import", s.path("gateways.csv")); err != nil {
		return err
	}
	s.server.Stop()
	return nil
}

// serve starts the server.
func (s *stage) serve() (err error) {
	if s.server, err = child.Start("server", s.path("server.log"), s.program("wardlink-server"), "run", "--dir", s.path("server")); err != nil {
		return err
	}
	return s.until("the server", s.server, func(context.Context) (bool, error) {
		_, err := s.operator("status", "--json")
		return err == nil, nil
	})
}

func (s *stage) until(what string, p *child.Process, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Minute)
	defer cancel()
	return child.Until(ctx, what, []*child.Process{p}, ok)
}

// configure writes the agent's configuration for a state directory.
func (s *stage) configure(state, tpm string) error {
	text := fmt.Sprintf("kit: %s\nstate: %s\ntpm: %s\nbuffer: {cap: 4GB}\nsources: [{id: bed-1, mllp: %q}]\n", s.path("kit.json"), s.path(state), tpm, s.mllp)
	return os.WriteFile(s.path("agent.yaml"), []byte(text), 0o600)
}

func (s *stage) kit() (enroll.Kit, error) {
	data, err := os.ReadFile(s.path("kit.json"))
	if err != nil {
		return enroll.Kit{}, err
	}
	return enroll.ParseKit(data)
}

// start starts the agent, and gives a connection to it as soon as there is one.
func (s *stage) start() (*monitor, error) {
	var err error
	if s.agent, err = child.Start("agent", s.path("agent.log"), s.program("wardlink-agent"), "run", "--config", s.path("agent.yaml")); err != nil {
		return nil, err
	}
	for {
		if c, err := net.Dial("tcp", s.mllp); err == nil {
			return &monitor{Conn: c, r: hl7.NewReader(c, 64<<10), boot: time.Now().UnixNano()}, nil
		}
		if err := errors.Join(s.agent.Died(), s.ctx.Err()); err != nil {
			return nil, fmt.Errorf("the agent: %w", err)
		}
		time.Sleep(500 * time.Microsecond)
	}
}

func (s *stage) end() {
	for _, p := range []*child.Process{s.agent, s.server} {
		if p != nil {
			p.Stop()
		}
	}
	if s.tpm != nil {
		s.tpm.Stop()
	}
}

// monitor is a bedside monitor that waits for each acknowledgement.
type monitor struct {
	net.Conn
	r    *hl7.Reader
	boot int64
	n    int
}

// say sends one message and waits until it is on the gateway's disk.
func (m *monitor) say() error {
	m.n++
	if err := m.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	w := bufio.NewWriter(m)
	if err := hl7.WriteFrame(w, message(fmt.Sprintf("F%d-%d", m.boot, m.n), m.n)); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	answer, err := m.r.Next()
	if err != nil {
		return fmt.Errorf("no acknowledgement: %w", err)
	}
	if !bytes.Contains(answer, []byte("MSA|CA|")) {
		return fmt.Errorf("acknowledgement %q", answer)
	}
	return nil
}

// message is what a monitor says of its patient in a second: eight readings, each an OBX of about 100 bytes.
func message(control string, n int) []byte {
	var b bytes.Buffer
	now := time.Now().UTC().Format("20060102150405.000") + "+0000"
	fmt.Fprintf(&b, "MSH|^~\\&|MONITOR|ICU|WL|WL|%s||ORU^R01^ORU_R01|%s|P|2.6|||AL|NE\rPID|||FOOT%d^^^HOSP&1.2.3&ISO\rPV1||I|ICU^07\rOBR|1|||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|||%s\r",
		now, control, n%7, now)
	for i, v := range []struct {
		code, unit string
		low, span  int
	}{
		{"147842^MDC_ECG_HEART_RATE^MDC", "264864^MDC_DIM_BEAT_PER_MIN^MDC", 60, 40}, {"150456^MDC_PULS_OXIM_SAT_O2^MDC", "262688^MDC_DIM_PERCENT^MDC", 92, 8},
		{"149530^MDC_PULS_OXIM_PULS_RATE^MDC", "264864^MDC_DIM_BEAT_PER_MIN^MDC", 60, 40}, {"151562^MDC_RESP_RATE^MDC", "264928^MDC_DIM_RESP_PER_MIN^MDC", 10, 10},
		{"150037^MDC_PRESS_BLD_ART_ABP_SYS^MDC", "266016^MDC_DIM_MMHG^MDC", 100, 40}, {"150038^MDC_PRESS_BLD_ART_ABP_DIA^MDC", "266016^MDC_DIM_MMHG^MDC", 60, 20},
		{"150039^MDC_PRESS_BLD_ART_ABP_MEAN^MDC", "266016^MDC_DIM_MMHG^MDC", 70, 30}, {"150344^MDC_TEMP^MDC", "268192^MDC_DIM_DEGC^MDC", 36, 3},
	} {
		fmt.Fprintf(&b, "OBX|%d|NM|%s|1.%d.1.1|%d|%s|%d-%d||||R|||%s||||0003B1FFFE000007^^^EUI-64\r", i+1, v.code, i+1, v.low+(n*7+i*13)%v.span, v.unit, v.low, v.low+v.span, now)
	}
	return b.Bytes()
}
