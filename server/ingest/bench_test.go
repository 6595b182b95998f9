package ingest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/gob"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/translog"
	"wardlink/telemetry"
)

// The load of a benchmark comes from a process of its own, this test binary again, so that the CPU time of this process is the
// server's.
const loadEnv = "WARDLINK_INGEST_LOAD"

func TestMain(m *testing.M) {
	if os.Getenv(loadEnv) != "" {
		if err := load(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// loadJob is what the load process is told.
type loadJob struct {
	Addr      string
	Certs     [][]byte // PEM of certificate and key, one gateway each: gw-0, gw-1, ...
	Record    []byte
	Frame     []byte
	Window    int
	Publishes int64

	Warm []byte // BenchmarkIdle: a frame that each publishes before it falls silent

	Calm   time.Duration // BenchmarkFlood: between two publishes of one gateway
	Phase  time.Duration
	Rounds int
}

// load connects all gateways, says so, waits for a byte and publishes: one write for each publish, Window of them in flight.
func load(in io.Reader, out io.Writer) error {
	var job loadJob
	input := bufio.NewReader(in)
	if err := gob.NewDecoder(input).Decode(&job); err != nil {
		return err
	}
	var left atomic.Int64
	left.Store(job.Publishes)
	var group sync.WaitGroup
	start := make(chan struct{})
	errs := make(chan error, len(job.Certs))
	var conns []*tls.Conn
	var packets [][]byte
	var idAt []int
	for i, p := range job.Certs {
		cert, err := tls.X509KeyPair(p, p)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("gw-%d", i)
		conn, err := tls.Dial("tcp", job.Addr, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"mqtt"},
		})
		if err != nil {
			return err
		}
		key := publishPacket(0x32, telemetry.KeyTopic(name), 1, job.Record)
		if _, err := conn.Write(append(connectPacket(name, 0), key...)); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, conn, 8); err != nil {
			return err
		}
		if job.Warm != nil {
			if _, err := conn.Write(publishPacket(0x32, telemetry.UpTopic(name, telemetry.LaneVitals), 2, job.Warm)); err != nil {
				return err
			}
			if _, err := io.CopyN(io.Discard, conn, 4); err != nil {
				return err
			}
		}
		packet := publishPacket(0x32, telemetry.UpTopic(name, telemetry.LaneVitals), 2, job.Frame)
		conns, packets, idAt = append(conns, conn), append(packets, packet), append(idAt, len(packet)-len(job.Frame)-2)
		if job.Calm > 0 {
			continue
		}
		group.Go(func() {
			<-start
			more := func() bool { return left.Add(-1) >= 0 }
			if err := flood(conn, packet, len(packet)-len(job.Frame)-2, job.Window, more); err != nil {
				errs <- err
			}
		})
	}
	fmt.Fprintln(out, "ready")
	if _, err := input.ReadByte(); err != nil {
		return err
	}
	if job.Calm > 0 {
		p99, err := fairness(job, conns, packets, idAt)
		fmt.Fprintln(out, int64(p99[0]), int64(p99[1]), int64(p99[2]))
		return err
	}
	close(start)
	group.Wait()
	close(errs)
	fmt.Fprintln(out, "done")
	_, _ = input.ReadByte() // the connections live until we are told to end
	return <-errs
}

// flood publishes one packet again and again while there are more, window of them in flight, and waits for the last PUBACK. The packet id
// is at idAt, and is another each time.
func flood(conn *tls.Conn, packet []byte, idAt, window int, more func() bool) error {
	inFlight, id := 0, uint16(0)
	answers := make([]byte, 4*window)
	for {
		for inFlight < window && more() {
			id = id%0xffff + 1
			binary.BigEndian.PutUint16(packet[idAt:], id)
			if _, err := conn.Write(packet); err != nil {
				return err
			}
			inFlight++
		}
		if inFlight == 0 {
			return nil
		}
		n, err := io.ReadAtLeast(conn, answers, 4)
		if err != nil {
			return err
		}
		for ; n%4 != 0; n++ {
			if _, err := io.ReadFull(conn, answers[:1]); err != nil {
				return err
			}
		}
		inFlight -= n / 4
	}
}

// nullJournal commits nothing, at once: what remains is the price of the endpoint.
type nullJournal struct{ n atomic.Uint64 }

func (j *nullJournal) NextID() (id audit.EventID) {
	n := j.n.Add(1)
	for i := range 8 {
		id[15-i] = byte(n >> (8 * i))
	}
	return id
}
func (j *nullJournal) Submit(_ journal.Entry, done func(uint64, error)) error {
	done(1, nil)
	return nil
}
func (j *nullJournal) Append(context.Context, ...journal.Entry) error { return nil }

// BenchmarkPublish is 50 mTLS gateways with 16 publishes of a 1 KB frame in flight each. cpu-us/publish is the CPU time of the server
// alone: TLS, checks, audit row and, with the real journal, its commits.
func BenchmarkPublish(b *testing.B) {
	b.Run("null", func(b *testing.B) { benchmarkPublish(b, new(nullJournal)) })
	b.Run("journal", func(b *testing.B) {
		c := journal.Config{Dir: filepath.Join(b.TempDir(), "journal"), Consumers: []string{"log"}}
		must(0, journal.Create(c))(b)
		j := must(journal.Open(c))(b)
		defer j.Close()
		benchmarkPublish(b, j)
	})
	// As the product runs: beside the journal, the log's writer hashes every row into windows and signs checkpoints.
	b.Run("audited", func(b *testing.B) {
		c := journal.Config{Dir: filepath.Join(b.TempDir(), "journal"), Consumers: []string{"log"}}
		must(0, journal.Create(c))(b)
		j := must(journal.Open(c))(b)
		defer j.Close()
		origin := audit.Origin(domain, 1)
		skey, _, err := translog.NewKey(origin)
		signer := must(note.NewSigner(skey))(b)
		must(0, err)(b)
		lc := translog.Config{Dir: filepath.Join(b.TempDir(), "log"), Origin: origin, Signer: signer, Journal: j}
		must(0, translog.Create(lc))(b)
		log := must(translog.Open(lc))(b)
		defer log.Close()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- log.Run(ctx) }()
		benchmarkPublish(b, j)
		cancel()
		must(0, <-done)(b)
	})
}

func benchmarkPublish(b *testing.B, j Journal) {
	const gateways, window, size = 50, 16, 1024
	k := &bench{t: b, ca: newAuthority(b), reg: newRegistry()}
	job := loadJob{Window: window, Publishes: int64(b.N)}
	for i := range gateways {
		name := fmt.Sprintf("gw-%d", i)
		k.reg.lanes[name] = 0x0f
		job.Certs = append(job.Certs, pemOf(b, k.ca.gateway(name)))
	}
	p := newPeriod(b)
	job.Record = p.signed
	overhead := len(p.frame(telemetry.LaneVitals, 0, 0))
	job.Frame = p.frame(telemetry.LaneVitals, 0, size-overhead)
	k.srv = New(Config{Journal: j, Registry: k.reg, TrustDomain: domain, Roots: k.ca.pool()})
	stop := k.serve(k.srv)
	defer stop()
	job.Addr = k.addr

	process := startLoad(b, job)
	process.expect("ready")
	before := cpuTime(b)
	b.ReportAllocs()
	b.ResetTimer()
	process.begin()
	process.expect("done")
	b.StopTimer()
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-us/publish")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "publishes/s")
	process.end()
}

// loadProcess is a process that runs load.
type loadProcess struct {
	b   *testing.B
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startLoad starts the load process and tells it its job. It says "ready" once all gateways are connected.
func startLoad(b *testing.B, job loadJob) *loadProcess {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), loadEnv+"=1")
	cmd.Stderr = os.Stderr
	p := &loadProcess{b: b, cmd: cmd, in: must(cmd.StdinPipe())(b), out: bufio.NewReader(must(cmd.StdoutPipe())(b))}
	must(0, cmd.Start())(b)
	must(0, gob.NewEncoder(p.in).Encode(job))(b)
	return p
}

func (p *loadProcess) expect(want string) {
	p.b.Helper()
	if line, err := p.out.ReadString('\n'); err != nil || line != want+"\n" {
		p.b.Fatalf("load process said %q, %v", line, err)
	}
}

// begin lets it publish.
func (p *loadProcess) begin() { must(p.in.Write([]byte{1}))(p.b) }

// end lets it close its connections, and waits for that.
func (p *loadProcess) end() {
	p.in.Close()
	must(0, p.cmd.Wait())(p.b)
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(0, syscall.Getrusage(syscall.RUSAGE_SELF, &u))(b)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func writeHeap(b *testing.B, name string) {
	f := must(os.Create(name))(b)
	defer f.Close()
	must(0, pprof.WriteHeapProfile(f))(b)
}

func pemOf(b *testing.B, cert tls.Certificate) []byte {
	key := must(x509.MarshalPKCS8PrivateKey(cert.PrivateKey))(b)
	p := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	return append(p, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
}
