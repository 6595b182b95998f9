// Command wardlink-launcher is installed as /usr/bin/wardlink-agent: it becomes the agent that firmware/slots chooses, by exec, so that
// process number, arguments, environment and signals are the agent's.
package main

import (
	"fmt"
	"io"
	"os"
	"syscall"

	"wardlink/firmware/slots"
	"wardlink/internal/build"
)

func main() {
	dir := slots.Dir{Path: slots.Root, Packaged: slots.Packaged}
	launch(dir, os.Args[1:], os.Stderr, func(path string, argv []string) error { return syscall.Exec(path, argv, os.Environ()) })
	os.Exit(1)
}

// launch returns only when nothing could be started; what it met is said.
func launch(dir slots.Dir, args []string, stderr io.Writer, exec func(path string, argv []string) error) {
	argv := append([]string{slots.Program}, args...)
	choice := dir.Choose(build.Version)
	if choice.Slot != "" {
		choice.Damage = fmt.Errorf("slot %s: %w", choice.Slot, exec(choice.Path, argv))
	}
	if choice.Damage != nil {
		fmt.Fprintf(stderr, "wardlink-agent: %v; the package's copy starts instead\n", choice.Damage)
	}
	if err := exec(dir.Packaged, argv); err != nil {
		fmt.Fprintf(stderr, "wardlink-agent: %s cannot be started: %v; install the package wardlink-agent again\n", dir.Packaged, err)
	}
}
