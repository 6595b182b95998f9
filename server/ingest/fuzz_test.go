package ingest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/telemetry"
)

// scriptConn plays a client that sends a script and hangs up.
type scriptConn struct {
	in  *bytes.Reader
	mu  sync.Mutex
	out bytes.Buffer
}

func (c *scriptConn) Read(p []byte) (int, error) { return c.in.Read(p) }
func (c *scriptConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}
func (c *scriptConn) Close() error { return nil }
func (c *scriptConn) LocalAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8883}
}
func (c *scriptConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

// directJournal commits at once, in the caller.
type directJournal struct {
	mu      sync.Mutex
	n       byte
	entries []journal.Entry
}

func (j *directJournal) NextID() (id audit.EventID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.n++
	id[0], id[15] = 1, j.n
	return id
}

func (j *directJournal) Submit(e journal.Entry, done func(uint64, error)) error {
	j.mu.Lock()
	j.entries = append(j.entries, e)
	j.mu.Unlock()
	done(1, nil)
	return nil
}

func (j *directJournal) Append(_ context.Context, entries ...journal.Entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, entries...)
	return nil
}

// FuzzSession feeds a whole connection's bytes to the server behind a proven identity. It must not panic, every entry it journals must
// be one that the readers of the journal accept, only the gateway's own batches may be in there, and each PUBACK needs a commit.
func FuzzSession(f *testing.F) {
	p := newPeriod(f)
	hello := connectPacket("gw-1", 60)
	join := func(packets ...[]byte) []byte { return bytes.Join(packets, nil) }
	up := telemetry.UpTopic("gw-1", telemetry.LaneVitals)
	key := publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed)
	f.Add(join(hello, key, publishPacket(0x32, up, 2, p.frame(telemetry.LaneVitals, 0, 20)), []byte{0xe0, 0}))
	f.Add(join(hello, publishPacket(0x32, up, 2, p.frame(telemetry.LaneVitals, 0, 20))))
	f.Add(join(hello, key, publishPacket(0x32, telemetry.UpTopic("gw-2", telemetry.LaneVitals), 2, p.frame(telemetry.LaneVitals, 0, 20))))
	f.Add(join(hello, subscribePacket(3, telemetry.DownFilter("gw-1"), 1), []byte{0xc0, 0}, []byte{0x40, 2, 0, 1}))
	f.Add(join(hello, hello))
	for _, seed := range packetSeeds() {
		f.Add(join(hello, seed))
		f.Add(seed)
	}
	ca := newAuthority(f)
	state, roots := ca.state(ca.gateway("gw-1")), ca.pool()
	f.Fuzz(func(t *testing.T, data []byte) {
		j := new(directJournal)
		srv := New(Config{Journal: j, Registry: newRegistry("gw-1"), TrustDomain: domain, Roots: roots, Down: (&bench{}).down})
		conn := &scriptConn{in: bytes.NewReader(data)}
		srv.ServeConn(context.Background(), conn, state)
		commits := 0
		for _, e := range j.entries {
			if err := strict(e); err != nil {
				t.Fatal(err)
			}
			if e.Kind == journal.KindEvent {
				continue
			}
			commits++
			if row, err := audit.DecodeRow(e.Head); e.Kind == journal.KindPublish && (err != nil || row.Gateway != "gw-1") {
				t.Fatalf("row %+v, %v", row, err)
			}
		}
		checkAnswers(t, conn.out.Bytes(), commits)
		if len(srv.sessions) != 0 || len(srv.waiting) != 0 {
			t.Fatal("the session is still in the table")
		}
	})
}

// checkAnswers reads what the server wrote: whole packets, CONNACK first, no more PUBACKs than commits.
func checkAnswers(t *testing.T, out []byte, commits int) {
	c := &client{t: t, conn: readOnly{Reader: bytes.NewReader(out)}}
	for i := 0; ; i++ {
		h, _, err := c.packet()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the server wrote half a packet: %v", err)
		}
		if (i == 0) != (h.kind == kindConnack) {
			t.Fatalf("packet %d of the server is of type %d", i, h.kind)
		}
		if h.kind == kindPuback {
			commits--
		}
	}
	if commits < 0 {
		t.Fatalf("%d PUBACKs without a commit", -commits)
	}
}

type readOnly struct {
	net.Conn
	io.Reader
}

func (r readOnly) Read(p []byte) (int, error) { return r.Reader.Read(p) }

// TestUnprovenStates: what looks like a connection with an identity and is none.
func TestUnprovenStates(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	good := ca.state(ca.gateway("gw-1"))
	srv := New(Config{TrustDomain: domain, Roots: ca.pool()})
	if _, proven, err := srv.prove(good, time.Now()); err != nil || !proven {
		t.Fatalf("%v, %v", proven, err)
	}
	for name, spoil := range map[string]func(s *tls.ConnectionState){
		"handshake not complete":     func(s *tls.ConnectionState) { s.HandshakeComplete = false },
		"TLS 1.2":                    func(s *tls.ConnectionState) { s.Version = tls.VersionTLS12 },
		"resumed":                    func(s *tls.ConnectionState) { s.DidResume = true },
		"another root's certificate": func(s *tls.ConnectionState) { *s = other.state(other.gateway("gw-1")) },
		"a chain that somebody verified": func(s *tls.ConnectionState) {
			s.PeerCertificates, s.VerifiedChains = nil, [][]*x509.Certificate{good.PeerCertificates}
		},
		"no peer certificate": func(s *tls.ConnectionState) { s.PeerCertificates = nil },
		"not valid yet":       func(s *tls.ConnectionState) { s.PeerCertificates[0] = ca.from("gw-1", time.Now().Add(time.Hour)).Leaf },
	} {
		state := ca.state(ca.gateway("gw-1"))
		spoil(&state)
		if id, proven, err := srv.prove(state, time.Now()); err == nil || proven || id != (identity{}) {
			t.Errorf("%s: %+v, %v, %v", name, id, proven, err)
		}
	}
}
