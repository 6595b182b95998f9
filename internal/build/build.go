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
	"strconv"
	"strings"
	"time"
)

// Version is the release; the linker may set it (-X wardlink/internal/build.Version=...).
var Version = "0.1.0-dev"

// What cross/stamp has the linker set; where it did not, Go's own stamp is looked at.
var (
	commit  string // of the sources, "+changes" behind it when they were changed since
	seconds string // since 1970, of that commit
)

// Time is when the source was committed that this build was made from, zero when the build does not know. No present is earlier.
func Time() time.Time {
	if n, err := strconv.ParseInt(seconds, 10, 64); err == nil && n > 0 {
		return time.Unix(n, 0).UTC()
	}
	t, _ := time.Parse(time.RFC3339, setting("vcs.time"))
	return t // zero when it cannot be read
}

// Commit names the sources that this build was made from, "" when the build does not know.
func Commit() string {
	if commit != "" {
		return commit
	}
	c := setting("vcs.revision")
	if c != "" && setting("vcs.modified") == "true" {
		c += "+changes"
	}
	return c
}

func setting(key string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// Info is a build.
type Info struct {
	Program   string            `json:"program"`
	Version   string            `json:"version"`
	Commit    string            `json:"commit"`    // "" when the build does not know it
	Committed time.Time         `json:"committed"` // zero when the build does not know it
	Go        string            `json:"go"`
	Platform  string            `json:"platform"`          // as linux/arm/v7: system, processor, and of arm the least variant
	FIPS      string            `json:"fips_140_3_module"` // "off", or its version
	Modules   map[string]string `json:"modules,omitempty"`
}

// platform is where the build runs. Of arm, three variants are about, and the wrong one dies of an illegal instruction.
func platform() string {
	p := runtime.GOOS + "/" + runtime.GOARCH
	if variant, _, _ := strings.Cut(setting("GOARM"), ","); variant != "" {
		p += "/v" + variant
	}
	return p
}

// About is the running build, with its modules if they are wanted.
func About(program string, modules bool) Info {
	i := Info{Program: program, Version: Version, Commit: Commit(), Committed: Time(), Go: runtime.Version(), Platform: platform(), FIPS: "off"}
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
	sources := "not known"
	if i.Commit != "" {
		sources = i.Commit + " of " + i.Committed.Format(time.RFC3339)
	}
	fmt.Fprintf(w, "%s %s\n  commit: %s\n  %s %s\n  FIPS 140-3 module: %s\n", i.Program, i.Version, sources, i.Go, i.Platform, i.FIPS)
	for _, path := range slices.Sorted(maps.Keys(i.Modules)) {
		fmt.Fprintf(w, "  %s %s\n", path, i.Modules[path])
	}
}
