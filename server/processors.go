package server

import (
	"os"
	"runtime"
	"sync"
)

// spare is how many more goroutines run at a time than there are processors. While all of Go's are busy, a goroutine whose connection has
// something to read waits behind everything that is queued there, and the network is looked at every 10 ms: in a storm of reconnects
// on two processors readers of publishes waited 12 ms in the median and 87 at the 99th percentile, for handshakes and for records.
// The kernel shares processors out by the millisecond and lets those come first that slept, so with a few more threads than processors one that
// waits for the network has one at once.
const spare = 2

// processors is how many there are for this process. The first call makes room for spare more, unless GOMAXPROCS says how many shall run.
var processors = sync.OnceValue(func() int {
	n := runtime.GOMAXPROCS(0)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(n + spare)
	}
	return n
})
