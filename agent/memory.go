package agent

import (
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// restEvery is how often an agent gives back the pages of its program. A start needs most of them (it tests its cryptography, enrols, opens its
// buffer), as do a report and a person's question, each for an instant.
const restEvery = 10 * time.Second

// rest gives memory back until ctx ends.
func rest(ctx context.Context) {
	tick := time.NewTicker(restEvery)
	defer tick.Stop()
	giveBack() // what a start alone needed
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			giveBack()
		}
	}
}

// giveBack takes the program's own pages out of the process's memory. What runs all the time comes back at once, by some hundred minor
// faults (less than a millisecond); the rest, half of the program and more, stays in the kernel's cache as long as nobody needs the room.
//
// A kernel that keeps the program in its cache in large pieces may map a whole piece for one byte of it, and all of the program would be back at
// once: it is told not to. Not every kernel listens.
func giveBack() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil || !fixed(program) {
		return
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		// Only what nobody can have written to (see fixed): a private page that was written to would come back as it is in the file.
		if len(f) < 6 || f[5] != program || !strings.HasPrefix(f[1], "r-") || f[1][3] != 'p' {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil && begin < end {
			for _, advice := range [...]uintptr{syscall.MADV_NOHUGEPAGE, syscall.MADV_DONTNEED} {
				_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, uintptr(begin), uintptr(end-begin), advice) // refused, it changes nothing
			}
		}
	}
}

// fixed tells whether a program runs at the addresses that it was linked for (ELF: e_type is ET_EXEC). One that is moved at its start has pages
// that were written to then and are read-only now.
func fixed(program string) bool {
	f, err := os.Open(program)
	if err != nil {
		return false
	}
	defer f.Close()
	var head [18]byte
	_, err = io.ReadFull(f, head[:])
	return err == nil && head[16]+head[17] == 2 // whichever the order of bytes; ET_DYN is 3
}
