// Package build says which build is running.
package build

import (
	"crypto/fips140"
	"fmt"
	"io"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
)

// Version is the release; the linker may set it (-X wardlink/internal/build.Version=...).
var Version = "0.1.0-dev"

// Time is when the source was committed that this build was made from, zero when the build does not know. No present is earlier.
func Time() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ := time.Parse(time.RFC3339, s.Value)
			return t // zero when it cannot be read
		}
	}
	return time.Time{}
}

// Info is a build.
type Info struct {
	Program  string            `json:"program"`
	Version  string            `json:"version"`
	Go       string            `json:"go"`
	Platform string            `json:"platform"`
	FIPS     string            `json:"fips_140_3_module"` // "off", or its version
	Modules  map[string]string `json:"modules,omitempty"`
}

// About is the running build, with its modules if they are wanted.
func About(program string, modules bool) Info {
	i := Info{Program: program, Version: Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, FIPS: "off"}
	if fips140.Enabled() {
		i.FIPS = fips140.Version()
	}
	if info, ok := debug.ReadBuildInfo(); ok && modules {
		i.Modules = map[string]string{}
		for _, m := range info.Deps {
			i.Modules[m.Path] = m.Version
		}
	}
	return i
}

// Print writes what a support engineer asks for first. With modules, each linked module follows.
func Print(w io.Writer, program string, modules bool) {
	i := About(program, modules)
	fmt.Fprintf(w, "%s %s\n  %s %s\n  FIPS 140-3 module: %s\n", i.Program, i.Version, i.Go, i.Platform, i.FIPS)
	for _, path := range slices.Sorted(maps.Keys(i.Modules)) {
		fmt.Fprintf(w, "  %s %s\n", path, i.Modules[path])
	}
}
