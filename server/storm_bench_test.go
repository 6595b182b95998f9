package server

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/gob"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"wardlink/internal/spiffe"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// stormEnv makes this binary the clients of BenchmarkReconnects.
const stormEnv = "WARDLINK_STORM_CLIENTS"

// everybody admits all gateways.
type everybody struct{}

func (everybody) AdmitKey(_ context.Context, gateway string, _ [32]byte) (registry.Admission, error) {
	return registry.Admission{Gateway: gateway, Lanes: 0x0f}, nil
}
func (everybody) Revision(context.Context) (int64, error)           { return 1, nil }
func (everybody) CutOff(context.Context) ([]registry.CutOff, error) { return nil, nil }
func (everybody) HoldsNewest(context.Context, string, [32]byte, string) (bool, error) {
	return true, nil
}

// stormJob is what a process of clients is told.
type stormJob struct {
	Addr   string
	Certs  [][]byte // PEM of chain and key, one gateway each
	Names  []string
	Record []byte
	Frame  []byte
	Calm   bool // publish and measure; else connect all at once
}

// BenchmarkReconnects is what a storm of reconnects does to who is connected: the 99th percentile from publish to PUBACK of twenty gateways with fifty
// publishes a second each, before and while 1,000 others connect at once, over the doorway and a real journal. Goal: the ratio is at
// most 2, and all are in within the time that one millisecond of half the processors for each implies. The clients are processes of their own on
// the same processors, those of the storm with a lower priority, since in a hospital they are other machines.
func BenchmarkReconnects(b *testing.B) {
	const calm, storm = 20, 1000
	tr := newTrust(b)
	own := tr.certificate(b, spiffe.Service, "ingest")
	c := journal.Config{Dir: filepath.Join(b.TempDir(), "journal"), Consumers: []string{"log"}}
	if err := journal.Create(c); err != nil {
		b.Fatal(err)
	}
	j, err := journal.Open(c)
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	srv := ingest.New(ingest.Config{Journal: j, Registry: everybody{}, TrustDomain: "ward.example", Roots: pool(tr.root)})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	port := &gatewayPort{
		doorway: doorway{
			ln: ln, tls: gatewaysTLS(func() (*tls.Certificate, error) { return &own, nil }, tr.root, srv.VerifyConnection),
			refuse: srv.Refusals().Add, log: slog.New(slog.DiscardHandler),
		},
		mqtt: func(_ context.Context, conn net.Conn, state tls.ConnectionState) {
			srv.ServeConn(context.Background(), conn, state)
		},
		http: &http.Server{},
	}
	done := make(chan error, 1)
	go func() { done <- port.run(ctx) }()

	key, err := seal.GenerateKey()
	if err != nil {
		b.Fatal(err)
	}
	period, err := seal.NewPeriod(key.Public(), telemetry.Epoch{1}, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	record, err := seal.SignRecord(period.Record(), own.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		b.Fatal(err)
	}
	frame, err := period.Seal(seal.Header{Lane: telemetry.LaneVitals, Count: 1}, make([]byte, 880))
	if err != nil {
		b.Fatal(err)
	}
	job := func(prefix string, n int) stormJob {
		out := stormJob{Addr: ln.Addr().String(), Record: record, Frame: frame}
		for i := range n {
			name := fmt.Sprintf("%s-%d", prefix, i)
			out.Names = append(out.Names, name)
			out.Certs = append(out.Certs, pemOf(b, tr.certificate(b, spiffe.Gateway, name)))
		}
		return out
	}
	connected := job("calm", calm)
	connected.Calm = true
	quiet := clients(b, connected, 0)
	var before, during, took []float64
	for range max(1, b.N) {
		before = append(before, quiet.ask(b, 4*time.Second))
		others := clients(b, job("storm", storm), 10)
		measured := make(chan float64, 1)
		go func() { measured <- quiet.ask(b, 4*time.Second) }()
		took = append(took, others.ask(b, 0))
		during = append(during, <-measured)
		others.end(b)
	}
	quiet.end(b)
	cancel()
	drain, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	if err := srv.Drain(drain); err != nil {
		b.Error(err)
	}
	if err := <-done; err != nil {
		b.Error(err)
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(median(before), "quiet-p99-ms")
	b.ReportMetric(median(during), "storm-p99-ms")
	b.ReportMetric(median(during)/median(before), "storm/quiet")
	b.ReportMetric(median(took)/1000, "all-in-s")
	b.ReportMetric(storm/(median(took)/1000), "connects/s")
}

func pemOf(b *testing.B, cert tls.Certificate) (out []byte) {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		b.Fatal(err)
	}
	for _, der := range cert.Certificate {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
}

// stormProcess is a process of clients that answers each line with a figure.
type stormProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func clients(b *testing.B, job stormJob, nice int) *stormProcess {
	b.Helper()
	cmd := exec.Command("nice", "-n", fmt.Sprint(nice), os.Args[0], "-test.run", "^$", "-test.bench", "^BenchmarkStormClients$", "-test.benchtime", "1x")
	cmd.Env = append(os.Environ(), stormEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	if err := gob.NewEncoder(in).Encode(job); err != nil {
		b.Fatal(err)
	}
	p := &stormProcess{cmd, in, bufio.NewReader(out)}
	p.figure(b)
	return p
}

func (p *stormProcess) ask(b *testing.B, d time.Duration) float64 {
	fmt.Fprintln(p.in, int64(d))
	return p.figure(b)
}

// figure reads past what the testing package prints.
func (p *stormProcess) figure(b *testing.B) (ms float64) {
	for {
		line, err := p.out.ReadString('\n')
		if err != nil {
			b.Error(err)
			return -1
		}
		if n, _ := fmt.Sscanf(line, "figure %f", &ms); n == 1 {
			return ms
		}
	}
}

func (p *stormProcess) end(b *testing.B) {
	p.in.Close()
	_, _ = io.Copy(io.Discard, p.out)
	if err := p.cmd.Wait(); err != nil {
		b.Error(err)
	}
}

// BenchmarkStormClients is no benchmark of its own: it is the clients of BenchmarkReconnects, in their process.
func BenchmarkStormClients(b *testing.B) {
	if os.Getenv(stormEnv) == "" {
		b.Skip("is run by BenchmarkReconnects")
	}
	in := bufio.NewReader(os.Stdin)
	var job stormJob
	if err := gob.NewDecoder(in).Decode(&job); err != nil {
		b.Fatal(err)
	}
	dial := func(i int) (*tls.Conn, error) {
		cert, err := tls.X509KeyPair(job.Certs[i], job.Certs[i])
		if err != nil {
			return nil, err
		}
		conn, err := tls.Dial("tcp", job.Addr, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"mqtt"}})
		if err != nil {
			return nil, err
		}
		body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0}, text(job.Names[i])...)
		if _, err := conn.Write(append(append([]byte{0x10, byte(len(body))}, body...), publishOf(telemetry.KeyTopic(job.Names[i]), job.Record)...)); err != nil {
			return nil, err
		}
		_, err = io.CopyN(io.Discard, conn, 8)
		return conn, err
	}
	conns := make([]*tls.Conn, len(job.Names))
	if job.Calm {
		for i := range conns {
			var err error
			if conns[i], err = dial(i); err != nil {
				b.Fatal(err)
			}
		}
	}
	fmt.Println("figure 0")
	for {
		var d int64
		if _, err := fmt.Fscanln(in, &d); err != nil {
			return
		}
		began := time.Now()
		var all sync.WaitGroup
		var mu sync.Mutex
		var took []time.Duration
		for i := range conns {
			all.Go(func() {
				var times []time.Duration
				var err error
				if job.Calm {
					times, err = publishing(conns[i], publishOf(telemetry.UpTopic(job.Names[i], telemetry.LaneVitals), job.Frame), began.Add(time.Duration(d)))
				} else {
					conns[i], err = dial(i)
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, job.Names[i], err)
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, times...)
			})
		}
		all.Wait()
		figure := time.Since(began)
		if job.Calm {
			slices.Sort(took)
			figure = took[len(took)*99/100]
		}
		fmt.Printf("\nfigure %f\n", float64(figure.Microseconds())/1000)
	}
}

func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

func publishOf(topic string, payload []byte) []byte {
	body := append(append(text(topic), 0, 1), payload...)
	head := []byte{0x32}
	for n := len(body); ; {
		if n < 0x80 {
			head = append(head, byte(n))
			break
		}
		head = append(head, byte(n)|0x80)
		n >>= 7
	}
	return append(head, body...)
}

// publishing gives how long each publish took, fifty a second, one at a time.
func publishing(conn *tls.Conn, packet []byte, end time.Time) (took []time.Duration, err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var answer [4]byte
	for time.Now().Before(end) {
		<-tick.C
		at := time.Now()
		if _, err := conn.Write(packet); err != nil {
			return took, err
		}
		if _, err := io.ReadFull(conn, answer[:]); err != nil {
			return took, err
		}
		took = append(took, time.Since(at))
	}
	return took, nil
}
