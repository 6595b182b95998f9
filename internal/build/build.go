// Package build says which build is running.
package build

import (
	"crypto/fips140"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// Version is the release; the linker may set it (-X wardlink/internal/build.Version=...).
var Version = "0.1.0-dev"

// Print writes what a support engineer asks for first. With modules, each linked module follows.
func Print(w io.Writer, program string, modules bool) {
	mode := "off"
	if fips140.Enabled() {
		mode = "on (" + fips140.Version() + ")"
	}
	fmt.Fprintf(w, "%s %s\n  %s %s/%s\n  FIPS 140-3 module: %s\n", program, Version, runtime.Version(), runtime.GOOS, runtime.GOARCH, mode)
	info, ok := debug.ReadBuildInfo()
	if !ok || !modules {
		return
	}
	for _, m := range info.Deps {
		fmt.Fprintf(w, "  %s %s\n", m.Path, m.Version)
	}
}
