package listener

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestTakenPortNamesItsHolder: on the same address, behind a wildcard, and in either family.
func TestTakenPortNamesItsHolder(t *testing.T) {
	me := fmt.Sprintf("(process %d)", os.Getpid())
	for _, first := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		ln, err := Listen(first)
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		for _, second := range []string{"127.0.0.1:" + port, ":" + port} {
			other, err := Listen(second)
			var taken *Taken
			if !errors.As(err, &taken) || !errors.Is(err, syscall.EADDRINUSE) {
				if err == nil {
					other.Close()
				}
				t.Errorf("%s beside %s: %v", second, first, err)
				continue
			}
			if !strings.Contains(err.Error(), second) || !strings.Contains(err.Error(), me) {
				t.Errorf("%s beside %s: %q does not name the address and %s", second, first, err, me)
			}
		}
		ln.Close()
	}
	if _, err := Listen("127.0.0.1:http-no-such"); err == nil || errors.As(err, new(*Taken)) {
		t.Errorf("a port that is none: %v", err)
	}
}

func TestListeningReadsTheKernelsTable(t *testing.T) {
	table := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0
   1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0
   2: 0200007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1 0
   3: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 14 1 0
   4: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 15 1 0
   5: zz:1F90 00000000:0000 0A 0 0 0 0 0 16
   6: 0100007F
`
	got := listening(strings.NewReader(table), netip.MustParseAddrPort("127.0.0.1:8080"))
	if !slices.Equal(got, []string{"11", "14"}) {
		t.Errorf("inodes %q; expected the listener on the address and the one on every address", got)
	}
	if got := printable("evil\x1b[2J\n"); got != "evil?[2J?" {
		t.Errorf("a program's name is shown as %q", got)
	}
}
