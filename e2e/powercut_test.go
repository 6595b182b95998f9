package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wardlink/internal/syscalltest"
)

// act is one thing that a program did to its files, or an acknowledgement that it wrote to a monitor.
type act struct {
	kind string // make, folder, write, size, rename, remove, flushed, ack
	path string
	from string // of a rename
	at   int64
	data []byte
}

// recorder writes down what a program does below a directory, in order. A flush is written down when it has ended; everything else when it is
// about to be done.
type recorder struct {
	dir string

	mu     sync.Mutex
	acts   []act
	offset map[string]int64 // of write(2)
}

var ackOf = regexp.MustCompile(`MSA\|CA\|([^\r|]+)`)

func (r *recorder) decide(c *syscalltest.Call) syscalltest.Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	if strings.HasPrefix(c.Path, "socket:") {
		if data, err := c.Data(); err == nil && c.Name == "write" {
			if m := ackOf.FindSubmatch(data); m != nil {
				r.acts = append(r.acts, act{kind: "ack", path: string(m[1])})
			}
		}
		return syscalltest.Pass
	}
	if !strings.HasPrefix(c.Path, r.dir) {
		return syscalltest.Pass
	}
	a := act{path: c.Path, from: c.From, at: c.At}
	switch c.Name {
	case "openat":
		r.offset[c.Path] = 0
		if c.Flags&syscall.O_CREAT == 0 {
			return syscalltest.Pass
		}
		a.kind = "make"
		if c.Flags&syscall.O_TRUNC != 0 {
			r.acts = append(r.acts, a)
			a.kind, a.at = "size", 0
		}
	case "mkdirat":
		a.kind = "folder"
	case "write", "pwrite64":
		data, err := c.Data()
		if err != nil {
			return syscalltest.Verdict(syscall.EFAULT) // the test cannot go on from here, and says so
		}
		a.kind, a.data = "write", data
		if c.Name == "write" {
			a.at = r.offset[c.Path]
			r.offset[c.Path] += int64(len(data))
		}
	case "ftruncate", "fallocate":
		a.kind = "size"
		if c.Name == "fallocate" {
			a.kind = "room"
		}
	case "renameat", "renameat2":
		a.kind = "rename"
	case "unlinkat":
		a.kind = "remove"
	default: // flushes are told when they have ended; modes and locks are nothing that a power cut takes
		return syscalltest.Pass
	}
	r.acts = append(r.acts, a)
	return syscalltest.Pass
}

func (r *recorder) flushed(c *syscalltest.Call, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && strings.HasPrefix(c.Path, r.dir) {
		r.acts = append(r.acts, act{kind: "flushed", path: c.Path})
	}
}

// platter is a disk that keeps what was flushed and, of the rest, what a power cut leaves. Names belong to their directory and are durable
// with its flush; bytes and length belong to the file and are durable with its own. Nothing else is relied on.
type platter struct {
	now, durable map[string]*inode // by path
	names        []naming          // done and not durable, in order
	acked        map[string]bool
}

type inode struct {
	folder  bool
	durable []byte
	pending []act // writes and lengths, in order
}

// naming is a change of names.
type naming struct {
	act
	file *inode // of a new name
}

func (n naming) in(names map[string]*inode) {
	switch n.kind {
	case "make", "folder":
		names[n.path] = n.file
	case "rename":
		if f := names[n.from]; f != nil {
			names[n.path] = f
			delete(names, n.from)
		}
	case "remove":
		delete(names, n.path)
	}
}

// replay takes in what a program did, from an empty directory on.
func replay(acts []act) *platter {
	p := &platter{now: map[string]*inode{}, durable: map[string]*inode{}, acked: map[string]bool{}}
	for _, a := range acts {
		switch a.kind {
		case "ack":
			p.acked[a.path] = true
		case "make", "folder":
			if p.now[a.path] == nil {
				p.name(naming{a, &inode{folder: a.kind == "folder"}})
			}
		case "rename", "remove":
			p.name(naming{act: a})
		case "write", "size", "room":
			if f := p.now[a.path]; f != nil {
				f.pending = append(f.pending, a)
			}
		case "flushed":
			p.flush(a.path)
		}
	}
	return p
}

func (p *platter) name(n naming) {
	n.in(p.now)
	p.names = append(p.names, n)
}

func (p *platter) flush(path string) {
	if f := p.now[path]; f != nil && !f.folder {
		for _, a := range f.pending {
			f.durable = a.on(f.durable)
		}
		f.pending = nil
		return
	}
	p.names = slices.DeleteFunc(p.names, func(n naming) bool {
		here := filepath.Dir(n.path) == path
		if here {
			n.in(p.durable)
		}
		return here
	})
}

// on is a file's content after a write or a change of its length.
func (a act) on(content []byte) []byte {
	end := a.at + int64(len(a.data))
	switch {
	case a.kind == "size" && a.at < int64(len(content)):
		return content[:a.at:a.at]
	case end > int64(len(content)):
		content = append(content, make([]byte, end-int64(len(content)))...)
	}
	copy(content[a.at:], a.data)
	return content
}

// luck is what a power cut leaves of what was not flushed.
type luck struct {
	name  string
	names func(n int) int // how many of the changes of names, from the first on
	keeps func() bool     // whether a sector of 512 bytes, or a length, got there
}

func lucks(rng *rand.Rand) []luck {
	return []luck{
		{"nothing more", func(int) int { return 0 }, func() bool { return false }},
		{"all data and no name", func(int) int { return 0 }, func() bool { return true }},
		{"all names and no data", func(n int) int { return n }, func() bool { return false }},
		{"by chance", func(n int) int { return rng.IntN(n + 1) }, func() bool { return rng.IntN(2) == 0 }},
	}
}

// cut writes what is left to a directory in place of the one that the program had.
func (p *platter) cut(l luck, from, to string) error {
	names := map[string]*inode{}
	for path, f := range p.durable {
		names[path] = f
	}
	for _, n := range p.names[:l.names(len(p.names))] {
		n.in(names)
	}
	for _, path := range slices.Sorted(maps.Keys(names)) {
		f := names[path]
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if _, err := os.Stat(filepath.Dir(target)); err != nil {
			continue // its directory's own name was not durable
		}
		if f.folder {
			err = os.Mkdir(target, 0o700)
		} else {
			err = writeSparse(target, f.left(l))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// left is what a power cut leaves of a file.
func (f *inode) left(l luck) []byte {
	const sector = 512
	content := bytes.Clone(f.durable)
	for _, a := range f.pending {
		if a.kind != "write" {
			if l.keeps() {
				content = a.on(content)
			}
			continue
		}
		for at := 0; at < len(a.data); at += sector {
			if l.keeps() {
				part := act{kind: "write", at: a.at + int64(at), data: a.data[at:min(at+sector, len(a.data))]}
				content = part.on(content)
			}
		}
	}
	return content
}

func writeSparse(path string, content []byte) error {
	const page = 4096
	w, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Truncate(int64(len(content))); err != nil {
		return err
	}
	var zero [page]byte
	for at := 0; at < len(content); at += page {
		if part := content[at:min(at+page, len(content))]; !bytes.Equal(part, zero[:len(part)]) {
			if _, err := w.WriteAt(part, int64(at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestPowerCutFaults: a SIGKILL leaves the page cache, a power cut does not. All that the agent writes in the life of TestGatewayFaults is
// recorded, with the ends of its flushes and the acknowledgements in between; then the power goes at each moment of it, and of what was not
// flushed there is left nothing, all data, all names, or what chance leaves, in sectors. Each time check finds nothing that a crash does not
// explain, the agent starts, takes more, and has what was acknowledged until then.
func TestPowerCutFaults(t *testing.T) {
	t.Parallel()
	key, kit := loneKit(t)
	l := newLone(t, key, kit)
	r := &recorder{dir: l.dir, offset: map[string]int64{}}
	l.watch = &syscalltest.Watch{Decide: r.decide, Flushed: r.flushed}
	live(l)
	acts := r.acts
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d acts", seed, len(acts))
	if p := replay(acts); len(p.acked) != len(l.acked) || len(acts) < 100 {
		t.Fatalf("%d acts with %d acknowledgements were recorded of %d", len(acts), len(p.acked), len(l.acked))
	}
	type cutCase struct{ until, luck int }
	var cases []cutCase
	for until := range acts {
		for k := range lucks(nil) {
			cases = append(cases, cutCase{until + 1, k})
		}
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	rng.Shuffle(len(cases), func(i, k int) { cases[i], cases[k] = cases[k], cases[i] })
	if !wholeFaults {
		cases = cases[:min(someFaults(), len(cases))]
		for i, a := range acts { // the moment after each acknowledgement
			if a.kind == "ack" {
				cases = append(cases, cutCase{i + 1, 0})
			}
		}
	}
	var mu sync.Mutex
	passed := map[string]int{}
	tried := map[string]int{}
	t.Run("cut", func(t *testing.T) {
		for _, c := range cases {
			how := lucks(rand.New(rand.NewPCG(seed, uint64(c.until))))[c.luck]
			t.Run(fmt.Sprintf("after %d, %s", c.until, how.name), func(t *testing.T) {
				t.Parallel()
				after := newLone(t, key, kit)
				p := replay(acts[:c.until])
				if err := p.cut(how, l.dir, after.dir); err != nil {
					t.Fatal(err)
				}
				after.powerIsBack(p.acked)
				if t.Failed() {
					t.Logf("the last acts: %s\nthe agent says\n%s", lastActs(acts[:c.until], l.dir), after.words())
				}
				mu.Lock()
				defer mu.Unlock()
				tried[how.name]++
				if !t.Failed() {
					passed[how.name]++
				}
			})
		}
	})
	var b strings.Builder
	for _, how := range lucks(nil) {
		fmt.Fprintf(&b, "power cut, %s: %d moments, %d passed\n", how.name, tried[how.name], passed[how.name])
	}
	report(t, b.String())
}

// powerIsBack is what happens after: a check, a start, a message, and the account.
func (l *lone) powerIsBack(acked map[string]bool) {
	l.t.Helper()
	l.acked = acked
	if _, err := os.Stat(filepath.Join(l.state(), "buffer", "format")); err == nil {
		if c := l.check(); len(c.Findings) > 0 || len(c.Damaged) > 0 {
			l.t.Errorf("buffer check: %+v", c)
		}
	}
	l.start()
	l.deliver("N0", vitals("N0"))
	l.agent.Kill()
	l.holds()
	if c := l.check(); len(c.Findings) > 0 || len(c.Damaged) > 0 {
		l.t.Errorf("buffer check after a start: %+v", c)
	}
}

func lastActs(acts []act, dir string) string {
	var b strings.Builder
	for _, a := range acts[max(0, len(acts)-8):] {
		fmt.Fprintf(&b, "%s %s @%d+%d, ", a.kind, strings.TrimPrefix(a.path, dir), a.at, len(a.data))
	}
	return b.String()
}
