package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"wardlink/internal/mounttest"
)

// kitTo makes a kit with these addresses.
func (h *hospital) kitTo(servers ...string) string {
	h.t.Helper()
	path := filepath.Join(h.dir, "kit-"+strings.NewReplacer(":", "-", ".", "-").Replace(servers[0])+".json")
	args := []string{"--operator", h.operator(), "provision", "kit", "--out", path}
	for _, s := range servers {
		args = append(args, "--server", s)
	}
	h.must("wardlink", args...)
	return path
}

// relay carries each connection of l to where onward leads.
func relay(l net.Listener, onward func(in *bufio.Reader, conn net.Conn) (net.Conn, error)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			in := bufio.NewReader(conn)
			to, err := onward(in, conn)
			if err != nil {
				return
			}
			defer to.Close()
			go func() { _, _ = io.Copy(to, in); to.Close() }()
			_, _ = io.Copy(conn, to)
		}()
	}
}

// A gateway has a network of its own in which nothing is but the one port: no DNS, no second address, no way past. It enrols, learns the
// time and delivers.
func TestOnePortIsEnough(t *testing.T) {
	t.Parallel()
	if !mounttest.Inside(t, ownPrograms+"="+bin) {
		return
	}
	for _, port := range []int{443, 61234} {
		t.Run(fmt.Sprint(port), func(t *testing.T) {
			h := newHospital(t)
			b := h.newBox("box", h.kitTo(fmt.Sprintf("127.0.0.1:%d", port)))
			b.enter("icu-7")

			// From here on this thread, and each process that it starts, is behind the firewall; the relay's other end is not.
			runtime.LockOSThread() // for good: the thread ends with the test
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Fatal(err)
			}
			loopbackUp(t)
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go relay(l, func(*bufio.Reader, net.Conn) (net.Conn, error) { return net.Dial("tcp", h.gateways) })
			if _, err := net.Dial("tcp", h.gateways); err == nil {
				t.Fatal("there is a way past the firewall")
			}
			b.deliver()
			b.await("the time", func(context.Context) (bool, error) { return b.clock().Trusted, nil })
			// The processes end before the thread does, or they would die of it.
			b.agent.Stop()
		})
	}
}

func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatalf("loopback of the test's own network: %v", err)
	}
}

// proxyWithPassword lets those through who know the password, to one name that only it can resolve.
type proxyWithPassword struct {
	address string
	mu      sync.Mutex
	asked   []string // method, target and the code of the answer
}

func newProxy(t *testing.T, name, behind, authorization string) *proxyWithPassword {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &proxyWithPassword{address: l.Addr().String()}
	go relay(l, func(in *bufio.Reader, conn net.Conn) (net.Conn, error) {
		r, err := http.ReadRequest(in)
		if err != nil {
			return nil, err
		}
		code := http.StatusOK
		switch {
		case r.Header.Get("Proxy-Authorization") != authorization:
			code = http.StatusProxyAuthRequired
		case r.Method != http.MethodConnect || r.Host != name:
			code = http.StatusForbidden
		}
		p.mu.Lock()
		p.asked = append(p.asked, fmt.Sprintf("%s %s %d", r.Method, r.Host, code))
		p.mu.Unlock()
		fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\n\r\n", code, http.StatusText(code))
		if code != http.StatusOK {
			return nil, fmt.Errorf("%d", code)
		}
		return net.Dial("tcp", behind)
	})
	return p
}

func (p *proxyWithPassword) answers() (asked []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// A gateway whose only way out is a proxy enrols, learns the time and delivers through it; its doctor knows the step. What the proxy
// refuses is said, and the password is nowhere.
func TestThroughAProxy(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	const name, password = "wardlink.ward.invalid:443", "c0rrect-h0rse"
	// What is right is "icu:c0rrect-h0rse" in base64.
	p := newProxy(t, name, h.gateways, "Basic aWN1OmMwcnJlY3QtaDByc2U=")
	b := h.newBox("box", h.kitTo(name))
	credentials := filepath.Join(b.dir, "proxy")
	secret := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(credentials, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(credentials, mode); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(b.config())
	if err != nil {
		t.Fatal(err)
	}
	text = fmt.Appendf(text, "proxy: {url: 'http://%s', credentials: %s}\n", p.address, credentials)
	if err := os.WriteFile(b.config(), text, 0o600); err != nil {
		t.Fatal(err)
	}
	step := func(r findings, level, found string) {
		t.Helper()
		if l, f := r.level("server", "proxy"); l != level || !strings.Contains(f, found) {
			t.Errorf("proxy is %s: %s; expected %s with %q", l, f, level, found)
		}
	}

	secret("icu:"+password, 0o600)
	b.deliverAs("icu-7")
	b.await("the time", func(context.Context) (bool, error) { return b.clock().Trusted, nil })
	_, r := b.doctor()
	step(r, "well", "it lets this gateway through to "+name)
	if l, f := r.level("server", "authorisation"); l != "well" {
		t.Errorf("authorisation is %s: %s", l, f)
	}
	if l, f := r.level("uplink", ""); l != "well" || !strings.Contains(f, "through the proxy "+p.address) {
		t.Errorf("uplink is %s: %s", l, f)
	}
	before := p.answers()
	if i := slices.IndexFunc(before, func(a string) bool { return a != "CONNECT "+name+" 200" }); i >= 0 || len(before) < 4 { // enrolment, time, MQTT, doctor
		t.Errorf("the proxy was asked %q", before)
	}

	b.agent.Stop()
	secret("icu:"+password+"x", 0o600)
	_, r = b.doctor()
	step(r, "stops", `it does not accept user and password ("407`)
	b.start()
	b.await("the agent", func(ctx context.Context) (bool, error) { _, err := b.status(ctx); return err == nil, nil }) // which does not start with what comes now
	secret("icu:"+password, 0o644)
	_, r = b.doctor()
	step(r, "stops", "has mode 0644")
	secret("icu:"+password, 0o600) // and the running agent goes on with it
	b.send("M2")
	b.awaitIdle()

	log, err := os.ReadFile(filepath.Join(b.dir, "agent.log"))
	if err != nil {
		t.Fatal(err)
	}
	findings, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for where, said := range map[string][]byte{"log": log, "doctor": findings} {
		if strings.Contains(string(said), password) || strings.Contains(string(said), "aWN1") {
			t.Errorf("the password is in the %s:\n%s", where, said)
		}
	}
}

// The first address of the kit is off: enrolment, time and telemetry go to the second, and status and doctor say so.
func TestSecondAddress(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	off := freeAddr(t)
	b := h.newBox("box", h.kitTo(off, h.gateways))
	b.deliverAs("icu-7")
	if s, err := b.status(t.Context()); err != nil || s.Uplink.Server != h.gateways {
		t.Errorf("%+v, %v", s.Uplink, err)
	}
	b.await("the time", func(context.Context) (bool, error) { return b.clock().Trusted, nil })
	code, r := b.doctor()
	if l, f := r.level("uplink", ""); code != 2 || l != "warning" || !strings.Contains(f, off+" comes before it and did not work") || !strings.Contains(f, "connection refused") {
		t.Errorf("exit %d, uplink is %s: %s", code, l, f)
	}
	if l, f := r.level("server", "in use"); l != "well" {
		t.Errorf("in use is %s: %s", l, f)
	}
	if l, _ := r.level("server", "TCP"); l != "warning" {
		t.Errorf("TCP is %s", l)
	}
}
