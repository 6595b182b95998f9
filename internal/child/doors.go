package child

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// Doors hands out loopback addresses for children to listen at, none twice: most are not listened at before all are given. The zero
// value is ready, for any number of goroutines.
type Doors struct {
	mu    sync.Mutex
	given map[int]bool
}

// Free finds a port below those that the system gives to outgoing connections: one of these could take the port of a child that is
// killed, before it is started again.
func (d *Doors) Free() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range 200 {
		port := 20_000 + rand.IntN(12_000)
		if d.given[port] {
			continue
		}
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			if d.given == nil {
				d.given = make(map[int]bool)
			}
			d.given[port] = true
			return ln.Addr().String(), ln.Close()
		}
	}
	return "", errors.New("no free port was found between 20000 and 32000 on 127.0.0.1")
}
