package demo

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"wardlink/internal/child"
)

// After the demonstration a process that ends takes nothing with it: it is named, with what starts it again, until the interrupt.
func TestWatchGoesOn(t *testing.T) {
	p, err := child.Start("server", filepath.Join(t.TempDir(), "log"), "/bin/sh", "-c", "echo last words; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	out, in := io.Pipe()
	th := &theatre{Options: Options{Out: in, Bin: "/opt"}, server: "/srv", proc: p}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer in.Close()
		th.watch(ctx)
	}()
	var seen strings.Builder
	for buf := make([]byte, 512); !strings.Contains(seen.String(), "/opt/wardlink-server run --dir /srv\n\n"); {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, seen.String())
		}
		seen.Write(buf[:n])
	}
	if !strings.Contains(seen.String(), "server ended by itself (exit status 3)") || !strings.Contains(seen.String(), "last words") {
		t.Errorf("%q", seen.String())
	}
	select {
	case <-done:
		t.Error("it did not go on")
	default:
	}
	cancel()
	<-done
}
