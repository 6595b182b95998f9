package translog

import (
	"log/slog"
	"sync"

	"k8s.io/klog/v2"
)

var klogOnce sync.Once

// routeKlog sends what Tessera says through klog, which writes to stderr by itself, to our logger. klog is one per process and may
// be set only before it is used, so the first log of the process decides.
func routeKlog(log *slog.Logger) {
	klogOnce.Do(func() { klog.SetSlogLogger(log.With("from", "tessera")) })
}
