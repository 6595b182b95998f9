package agent

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wardlink/agent/source"
)

// TestTheAgentsOwnSocketsAreBounded: whoever may read the metrics can open connections and say nothing, and takes no more of the agent's
// memory and descriptors than a few have.
func TestTheAgentsOwnSocketsAreBounded(t *testing.T) {
	fds := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	path := filepath.Join(t.TempDir(), "m.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	b := newBox(t, t.TempDir())
	b.start()
	listening := make(chan struct{})
	go func() {
		done <- b.agent.serveOnce(ctx, func() (net.Listener, error) {
			defer close(listening)
			return source.Socket{Path: path, Group: -1}.Open()
		}, toldMetrics)
	}()
	<-listening
	const many = 100
	before := fds()
	for range many {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	time.Sleep(200 * time.Millisecond)
	if held := fds() - before - many; held > maxAnswers+many/4 {
		t.Errorf("the agent holds %d of %d connections", held, many)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("it does not end")
	}
}
