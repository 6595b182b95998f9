package durable

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// ErrLocked means that another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// lockWait is far above what a fork takes until its execve, and below what a person notices.
const lockWait = 200 * time.Millisecond

// Lock takes the lock of a file, which it makes if it is not there: syscall.LOCK_EX for a writer, syscall.LOCK_SH for those who only look.
// The kernel gives the lock back when the process ends, however it ends, or when the file is closed; but a child that a process has forked
// and that has not become another program yet (fork, execve) holds all that its parent held. So what is taken is asked for again, for lockWait.
func Lock(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	for end := time.Now().Add(lockWait); errors.Is(err, syscall.EWOULDBLOCK) && time.Now().Before(end); {
		time.Sleep(lockWait / 20)
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
