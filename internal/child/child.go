// Package child runs the real programs as child processes, for the demonstration and the tests of the programs together; and test binaries, until
// they are killed.
package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a child whose output goes to a file.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}

	mu     sync.Mutex
	wanted bool // its end is ours
}

// Start runs a program with its output appended to logFile.
func Start(name, logFile, program string, args ...string) (*Process, error) {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &Process{name: name, log: logFile, done: make(chan struct{}), cmd: exec.Command(program, args...)}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// A group of its own, so that an interrupt at the terminal reaches us alone and we end the children in order. Whatever ends us,
	// they do not outlive us.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w; 'make build' makes it", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // what became of it is in ProcessState
		close(p.done)
	}()
	return p, nil
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill is the power cut: SIGKILL, no goodbye.
func (p *Process) Kill() {
	p.expectEnd()
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks first and kills after a while.
func (p *Process) Stop() {
	p.expectEnd()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

func (p *Process) expectEnd() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = true
}

// Died tells of an end that nobody asked for; nil while the process runs.
func (p *Process) Died() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted {
		return nil
	}
	return fmt.Errorf("%s ended by itself (%v); its last words in %s:\n%s", p.name, p.cmd.ProcessState, p.log, lastLines(p.log, 5))
}

func lastLines(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Output runs a program to its end and gives what it printed.
func Output(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// Until asks again and again, until ok, an error, a dead process or the end of ctx. Between two questions it rests.
func Until(ctx context.Context, what string, watch []*Process, ok func(ctx context.Context) (bool, error)) error {
	for {
		began := time.Now()
		done, err := ok(ctx)
		if err != nil || done {
			return err
		}
		for _, p := range watch {
			if err := p.Died(); err != nil {
				return err
			}
		}
		select {
		case <-time.After(Rest(time.Since(began))):
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, errors.Join(ctx.Err(), context.Cause(ctx)))
		}
	}
}

// Rest is how long to wait before the next question when the last one took so long: four times that, for most start a program and shake hands with
// a server, and who waits must leave the processor to what is waited for; 20 ms at least, a quarter of a second at most.
func Rest(took time.Duration) time.Duration {
	return min(max(4*took, 20*time.Millisecond), 250*time.Millisecond)
}

// Ended tells whether the process has ended, wanted or not.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
