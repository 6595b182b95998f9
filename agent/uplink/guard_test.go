package uplink

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/telemetry"
)

// scripted is a connection that reads from a script.
type scripted struct {
	net.Conn
	src io.Reader
}

func (s scripted) Read(p []byte) (int, error)       { return s.src.Read(p) }
func (s scripted) Close() error                     { return nil }
func (s scripted) SetWriteDeadline(time.Time) error { return nil }

func TestGuardRefusesWhatTheServerMayNotSend(t *testing.T) {
	for name, data := range map[string][]byte{
		"publish of 256 MB":       {0x30, 0xff, 0xff, 0xff, 0x7f},
		"five length bytes":       {0x30, 0xff, 0xff, 0xff, 0xff, 0x01},
		"publish at qos 1":        {0x32, 5, 0, 1, 'a', 0, 1},
		"retained publish":        {0x31, 3, 0, 1, 'a'},
		"suback of no id of ours": {0x90, 3, 0, 2, 0},
		"suback of two codes":     {0x90, 4, 0, 1, 0, 0},
		"suback without code":     {0x90, 2, 0, 1},
		"connect":                 {0x10, 2, 0, 0},
		"pubrec":                  {0x50, 2, 0, 1},
		"disconnect":              {0xe0, 0},
		"pingresp with a body":    {0xd0, 1, 0},
		"long puback":             {0x40, 3, 0, 1, 0},
	} {
		g := newGuard(scripted{src: bytes.NewReader(data)}, time.Second)
		_, err := packets.ReadPacket(g)
		if !errors.Is(err, errProfile) {
			t.Errorf("%s: %v", name, err)
		}
		select {
		case <-g.gone:
		default:
			t.Errorf("%s: the connection goes on", name)
		}
	}
}

func TestGuardPassesTheProfile(t *testing.T) {
	doc := append([]byte{0x30, 0x83, 0x80, 0x04, 0, 1, 'a'}, make([]byte, telemetry.MaxDocument)...)
	stream := bytes.Join([][]byte{{0x20, 2, 0, 0}, {0x90, 3, 0, 1, 0}, {0x40, 2, 0, 7}, {0xd0, 0}, doc, {0x40, 2, 0, 8}}, nil)
	g := newGuard(scripted{src: bytes.NewReader(stream)}, time.Second)
	g.asked.Store(1<<16 | 1)
	for i := range 6 {
		if _, err := packets.ReadPacket(g); err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
	}
	if _, err := packets.ReadPacket(g); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// FuzzGuard: whatever a server sends, what the guard lets through neither makes paho's decoder panic nor makes it allocate more than
// a document.
func FuzzGuard(f *testing.F) {
	f.Add([]byte{0x20, 2, 0, 0, 0x90, 3, 0, 1, 0, 0x40, 2, 0, 1, 0xd0, 0})
	f.Add([]byte{0x30, 4, 0, 2, 'a', 'b'})
	f.Add([]byte{0x30, 3, 0xff, 0xff, 'a'})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{0x90, 4, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		g := newGuard(scripted{src: bytes.NewReader(data)}, time.Second)
		for {
			p, err := packets.ReadPacket(g)
			if err != nil {
				return
			}
			switch p := p.(type) {
			case *packets.PublishPacket:
				if len(p.Payload) > telemetry.MaxDocument+256 || p.Qos != 0 {
					t.Fatalf("publish of %d bytes at QoS %d", len(p.Payload), p.Qos)
				}
			case *packets.SubackPacket:
				if len(p.ReturnCodes) != 1 {
					t.Fatalf("%d return codes", len(p.ReturnCodes))
				}
			}
		}
	})
}
