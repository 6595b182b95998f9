package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"wardlink/e2e/load"
	"wardlink/internal/child"
	"wardlink/internal/pgserver"
	"wardlink/server/journal"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/sqldb"
)

// subject is one server that is measured.
type subject struct {
	name string // on the command line and in the JSON
	what string // in the table
	// durable: every PUBACK stands for a write that was synced, which is checked. audited: every publish has its row in the journal and
	// a place in the log, which is checked.
	durable, audited bool
	start            func(b *bench, dir string) (*running, error)
}

// running is a subject's processes.
type running struct {
	addr  string
	pids  []int
	store string       // where it must sync; "" if it stores nothing
	check func() error // while it runs, after the last measurement: what it has kept; may be nil
	stop  func() error
	end   func() error // of what it needed, once nobody looks any more; may be nil

	// Of ours alone.
	site    string // the server's directory
	debug   string // Unix socket of its pprof
	journal func() (journal.Store, error)
}

const (
	ours     = "wardlink"
	oursPG   = "wardlink-postgres"
	unstored = "no-storage"
	nats     = "nats"
	broker   = "mosquitto"
	brokerTo = "mosquitto-subscriber"
)

func subjects() []subject {
	return []subject{
		{ours, "wardlink, embedded journal", true, true, startEmbedded(sinkJournal)},
		{oursPG, "wardlink, journal in PostgreSQL", true, true, startPG},
		{unstored, "wardlink without storing", false, false, startEmbedded(sinkNone)},
		{brokerTo, "mosquitto, one subscriber at QoS 1", false, false, startMosquitto(true)},
		{broker, "mosquitto, no subscriber", false, false, startMosquitto(false)},
		{nats, "NATS JetStream, sync_interval always", true, false, startNATS},
	}
}

// startEmbedded runs the ingest service with the journal of its directory, or with none.
func startEmbedded(sink string) func(b *bench, dir string) (*running, error) {
	return func(b *bench, dir string) (*running, error) {
		r, err := b.startOurs(dir, sink)
		if err != nil {
			return r, err
		}
		r.store = filepath.Join(r.site, "journal")
		r.journal = func() (journal.Store, error) { return journal.Open(load.JournalConfig(r.site)) }
		return r, nil
	}
}

// startPG runs the ingest service with its journal in a PostgreSQL of its own, of the distribution, on this machine: its processes count
// as the server's.
func startPG(b *bench, dir string) (*running, error) {
	for _, d := range []string{b.dir, dir} { // root's PostgreSQL runs as another user
		if err := os.Chmod(d, 0o711); err != nil {
			return nil, err
		}
	}
	pg, err := pgserver.New(pgserver.Config{Base: dir, Settings: map[string]string{"shared_buffers": "128MB"}}) // the distribution's
	if err != nil {
		return nil, err
	}
	url, err := func() (string, error) {
		if err := pg.Exec(context.Background(), "postgres", "CREATE DATABASE wardlink TEMPLATE template0 ENCODING 'UTF8'"); err != nil {
			return "", err
		}
		url := pg.URL("wardlink", pgserver.Superuser)
		return url, sqldb.Create(url, pgjournal.Migrations()...)
	}()
	if err != nil {
		return nil, errors.Join(err, pg.Close())
	}
	r, err := b.startOurs(dir, url)
	if err != nil {
		return r, errors.Join(err, pg.Close())
	}
	r.pids, r.end = append(r.pids, pg.PID()), pg.Close
	r.store = filepath.Join(pg.Dir(), "data", "pg_wal")
	r.journal = func() (journal.Store, error) { return openPG(context.Background(), url) }
	return r, nil
}

// startOurs runs the ingest service in a process of its own, on a fresh copy of the hospital's directory.
func (b *bench) startOurs(dir, sink string) (*running, error) {
	site := filepath.Join(dir, "server")
	if out, err := exec.Command("cp", "-a", b.hospital.Dir, site).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cp: %w: %s", err, out)
	}
	if err := b.hospital.ServerFiles(site); err != nil {
		return nil, err
	}
	addr, err := b.doors.Free()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r := &running{addr: addr, site: site, debug: filepath.Join(dir, "debug")}
	p, err := child.Start("server", filepath.Join(dir, "log"), self, "serve", "--dir", site, "--addr", addr, "--sink", sink, "--debug", r.debug)
	if err != nil {
		return nil, err
	}
	r.pids = []int{p.PID()}
	return r, r.ready(p)
}

// ready waits until the port answers. From here on r ends the process.
func (r *running) ready(p *child.Process) error {
	r.stop = func() error {
		if err := p.Died(); err != nil {
			return err
		}
		p.Stop()
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return child.Until(ctx, "the port "+r.addr, []*child.Process{p}, func(context.Context) (bool, error) {
		conn, err := net.Dial("tcp", r.addr)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
}

// mosquittoConfig: TLS 1.3 with certificates that are required, nothing on disk, and no limit by which a message could be dropped.
// Of root's, 'user' keeps it from becoming one who may not read this directory; others' mosquitto passes it over.
const mosquittoConfig = `listener %s 127.0.0.1
cafile %[2]s/root.pem
certfile %[2]s/server.pem
keyfile %[2]s/server.key
require_certificate true
tls_version tlsv1.3
allow_anonymous true
persistence false
max_inflight_messages 0
max_queued_messages 0
log_type error
user root
`

func startMosquitto(subscriber bool) func(b *bench, dir string) (*running, error) {
	return func(b *bench, dir string) (*running, error) {
		addr, err := b.doors.Free()
		if err != nil {
			return nil, err
		}
		_, port, _ := net.SplitHostPort(addr)
		config := filepath.Join(dir, "mosquitto.conf")
		if err := b.hospital.ServerFiles(dir); err != nil {
			return nil, err
		}
		if err := os.WriteFile(config, fmt.Appendf(nil, mosquittoConfig, port, dir), 0o644); err != nil {
			return nil, err
		}
		program, err := look("mosquitto", "/usr/sbin/mosquitto")
		if err != nil {
			return nil, err
		}
		p, err := child.Start("mosquitto", filepath.Join(dir, "log"), program, "-c", config)
		if err != nil {
			return nil, err
		}
		r := &running{addr: addr, pids: []int{p.PID()}}
		if err := r.ready(p); err != nil || !subscriber {
			return r, err
		}
		conn, err := load.NewDialer(b.hospital.Fleet, addr).Connect(context.Background(), keeper)
		if err != nil {
			return r, err
		}
		if err := conn.Subscribe("wl/#", 1); err != nil {
			return r, err
		}
		var took atomic.Int64
		go func() { _ = conn.Take(&took) }()
		r.check = func() error {
			if took.Load() == 0 {
				return fmt.Errorf("mosquitto's subscriber has got nothing")
			}
			return nil
		}
		return r, nil
	}
}

// natsConfig: JetStream syncs every write; MQTT with certificates that are required. The other port is for nobody but this machine. NATS ends a
// connection whose publish its store has not taken in 5 s, and with 8,000 in flight its last wait about that long.
const natsConfig = `server_name: bench
listen: "%s"
http: "%s"
max_payload: 1MB
jetstream { store_dir: "%s", sync_interval: always, max_file_store: 50GB, max_memory_store: 1GB }
mqtt {
  listen: "%s"
  js_api_timeout: "30s"
  tls { cert_file: "%[5]s/server.pem", key_file: "%[5]s/server.key", ca_file: "%[5]s/root.pem", verify: true, timeout: 30 }
}
`

// startNATS runs NATS with one session that lasts, subscribed to all at QoS 1 and not connected: without somebody's interest NATS sends
// PUBACKs and stores nothing. Such a session makes JetStream store every publish, synced, before its PUBACK, and costs no delivery.
func startNATS(b *bench, dir string) (*running, error) {
	addr, err := b.doors.Free()
	if err != nil {
		return nil, err
	}
	control, err := b.doors.Free()
	if err != nil {
		return nil, err
	}
	monitor, err := b.doors.Free()
	if err != nil {
		return nil, err
	}
	if err := b.hospital.ServerFiles(dir); err != nil {
		return nil, err
	}
	config, store := filepath.Join(dir, "nats.conf"), filepath.Join(dir, "store")
	if err := os.WriteFile(config, fmt.Appendf(nil, natsConfig, control, monitor, store, addr, dir), 0o644); err != nil {
		return nil, err
	}
	p, err := child.Start("nats", filepath.Join(dir, "log"), b.nats, "-c", config)
	if err != nil {
		return nil, err
	}
	r := &running{addr: addr, pids: []int{p.PID()}, store: store}
	if err := r.ready(p); err != nil {
		return r, err
	}
	d := load.NewDialer(b.hospital.Fleet, addr)
	d.Lasting = true
	conn, err := d.Connect(context.Background(), keeper)
	if err != nil {
		return r, err
	}
	if err := conn.Subscribe("wl/#", 1); err != nil {
		return r, err
	}
	r.check = func() error { return b.natsKept(monitor) }
	return r, conn.Leave()
}

// natsKept holds what JetStream says it stores against what was acknowledged.
func (b *bench) natsKept(monitor string) error {
	resp, err := http.Get("http://" + monitor + "/jsz?streams=true&accounts=true")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Accounts []struct {
			Streams []struct {
				Name  string
				State struct{ Messages int64 }
			} `json:"stream_detail"`
		} `json:"account_details"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(&answer); err != nil {
		return err
	}
	for _, a := range answer.Accounts {
		for _, s := range a.Streams {
			if s.Name == "$MQTT_msgs" {
				if want := acknowledged(b.published); s.State.Messages < want {
					return fmt.Errorf("NATS stores %d messages of %d that it acknowledged", s.State.Messages, want)
				}
				return nil
			}
		}
	}
	return fmt.Errorf("NATS has no stream of MQTT's messages")
}

func acknowledged(batches []load.Batch) (n int64) {
	for _, p := range batches {
		n += int64(p.Acked)
	}
	return n
}

// look finds a program that a user's PATH may not have.
func look(name, also string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	if _, err := os.Stat(also); err != nil {
		return "", fmt.Errorf("%s: not found; 'make bench-peers' installs it", name)
	}
	return also, nil
}

// intruders tries to get in without TLS, with an older TLS, and without a certificate; none may get a CONNACK.
func intruders(addr string) error {
	hello := append([]byte{0x10, 17, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 30, 0, 5}, "gw-00"...)
	for name, dial := range map[string]func() (net.Conn, error){
		"without TLS": func() (net.Conn, error) { return net.Dial("tcp", addr) },
		"with TLS 1.2": func() (net.Conn, error) {
			return tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
		},
		"without a certificate": func() (net.Conn, error) { return tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) },
	} {
		conn, err := dial()
		if err != nil {
			continue // refused, as it should be
		}
		_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
		_, _ = conn.Write(hello)
		var answer [4]byte
		n, _ := conn.Read(answer[:])
		_ = conn.Close()
		if n == 4 && answer[0] == 0x20 && answer[3] == 0 {
			return fmt.Errorf("a client %s is let in: not the figure of an endpoint with mutual TLS 1.3", name)
		}
	}
	return nil
}
