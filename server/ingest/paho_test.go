package ingest

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/audit"
	"wardlink/telemetry"
)

// pahoClient makes a client of the library that the agents use, over real TLS 1.3 with a client certificate.
func (b *bench) pahoClient(id string, cert tls.Certificate, change func(*paho.ClientOptions)) paho.Client {
	b.t.Helper()
	o := paho.NewClientOptions().AddBroker("ssl://" + b.addr).SetClientID(id).SetProtocolVersion(4).SetAutoReconnect(false)
	o.SetWriteTimeout(patience).SetConnectTimeout(patience)
	o.SetTLSConfig(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"mqtt"}})
	if change != nil {
		change(o)
	}
	c := paho.NewClient(o)
	b.t.Cleanup(func() { c.Disconnect(250) })
	return c
}

func wait(t testing.TB, token paho.Token) error {
	t.Helper()
	if !token.WaitTimeout(patience) {
		t.Fatalf("no answer within %s", patience)
	}
	return token.Error()
}

func TestPahoPublishesAndSubscribes(t *testing.T) {
	const n = 500
	b := newBench(t, Limits{}, "gw-1")
	c := b.pahoClient("gw-1", b.ca.gateway("gw-1"), nil)
	if err := wait(t, c.Connect()); err != nil {
		t.Fatal(err)
	}
	docs := make(chan string, 10)
	sub := c.Subscribe(telemetry.DownFilter("gw-1"), 1, func(_ paho.Client, m paho.Message) { docs <- m.Topic() + " " + string(m.Payload()) })
	if err := wait(t, sub); err != nil {
		t.Fatal(err)
	}
	if granted := sub.(*paho.SubscribeToken).Result()[telemetry.DownFilter("gw-1")]; granted != 0 {
		t.Errorf("granted QoS %d", granted)
	}
	select {
	case doc := <-docs:
		if doc != "wl/1/gw-1/down/config config of gw-1" {
			t.Errorf("document %q", doc)
		}
	case <-time.After(patience):
		t.Fatal("no document came")
	}
	p := newPeriod(t)
	if err := wait(t, c.Publish(telemetry.KeyTopic("gw-1"), 1, false, p.signed)); err != nil {
		t.Fatal(err)
	}
	tokens := make([]paho.Token, n)
	for i := range n {
		tokens[i] = c.Publish(telemetry.UpTopic("gw-1", telemetry.LaneVitals), 1, false, p.frame(telemetry.LaneVitals, uint64(i), 1000))
	}
	for i, token := range tokens {
		if err := wait(t, token); err != nil {
			t.Fatalf("publish %d: %v", i, err)
		}
	}
	rows := b.journal.rows()
	if len(rows) != n {
		t.Fatalf("%d rows, expected %d", len(rows), n)
	}
	for i, row := range rows {
		if row.Number != uint64(i) {
			t.Fatalf("row %d holds number %d", i, row.Number)
		}
	}
}

// TestPahoPingsAreAnswered leaves paho alone for an hour: only its pings keep the session.
func TestPahoPingsAreAnswered(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		conn := b.open("gw-1", 10*time.Hour).conn
		o := paho.NewClientOptions().AddBroker("tcp://server:1").SetClientID("gw-1").SetProtocolVersion(4).SetAutoReconnect(false)
		o.SetKeepAlive(30 * time.Second).SetPingTimeout(time.Second)
		o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return conn, nil })
		o.SetConnectionLostHandler(func(_ paho.Client, err error) { t.Errorf("connection lost: %v", err) })
		c := paho.NewClient(o)
		if err := wait(t, c.Connect()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if !c.IsConnectionOpen() {
			t.Error("the connection is gone")
		}
		c.Disconnect(250)
		time.Sleep(time.Minute) // paho's goroutines end by their own deadlines
	})
}

func TestPahoIsRefused(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	for _, tc := range []struct {
		name   string
		change func(*paho.ClientOptions)
		err    error
	}{
		{"client id", func(o *paho.ClientOptions) { o.SetClientID("gw-2") }, packets.ErrorRefusedIDRejected},
		{"mqtt 3.1", func(o *paho.ClientOptions) { o.SetProtocolVersion(3) }, packets.ErrorRefusedBadProtocolVersion},
		{"persistent session", func(o *paho.ClientOptions) { o.SetCleanSession(false) }, packets.ErrorRefusedNotAuthorised},
		{"will", func(o *paho.ClientOptions) { o.SetWill("wl/1/gw-1/up/alarm", "gone", 0, false) }, packets.ErrorRefusedNotAuthorised},
		{"hello of the future", func(o *paho.ClientOptions) { o.SetUsername("wl/7-9/3.0.0") }, packets.ErrorRefusedBadProtocolVersion},
		{"password", func(o *paho.ClientOptions) { o.SetUsername("u").SetPassword("p") }, packets.ErrorRefusedBadUsernameOrPassword},
	} {
		c := b.pahoClient("gw-1", b.ca.gateway("gw-1"), tc.change)
		if err := wait(t, c.Connect()); !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, expected %v", tc.name, err, tc.err)
		}
	}
	if n := len(b.journal.events(audit.Refused)); n != 6 {
		t.Errorf("%d refusals are journaled, expected 6", n)
	}
}

// TestPahoHearsOfTheRefusal: the document must arrive although it is followed by the end of the connection and 64 publishes are on
// their way against it.
func TestPahoHearsOfTheRefusal(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	b.reg.change(func() { b.reg.lanes["gw-1"] = 1 << telemetry.LaneVitals })
	for range 20 {
		refusals := make(chan paho.Message, 1)
		c := b.pahoClient("gw-1", b.ca.gateway("gw-1"), func(o *paho.ClientOptions) {
			o.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { refusals <- m })
		})
		if err := wait(t, c.Connect()); err != nil {
			t.Fatal(err)
		}
		p := newPeriod(t)
		c.Publish(telemetry.KeyTopic("gw-1"), 1, false, p.signed)
		frame := p.frame(telemetry.LaneWaveform, 7, 100_000)
		go func() {
			for range 64 {
				c.Publish(telemetry.UpTopic("gw-1", telemetry.LaneWaveform), 1, false, frame)
			}
		}()
		select {
		case m := <-refusals:
			if r, err := telemetry.DecodeRefusal(m.Payload()); err != nil || r.Number != 7 || r.Reason != reasonLane {
				t.Fatalf("%+v, %v", r, err)
			}
		case <-time.After(patience):
			t.Fatal("the refusal did not arrive")
		}
		c.Disconnect(0)
	}
}
