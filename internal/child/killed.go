package child

import (
	"bufio"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Killed runs cmd, kills it the delay after it printed so many lines, and gives every whole line that it printed to fn. A cmd that ends by itself
// is an error.
func Killed(cmd *exec.Cmd, lines int, delay time.Duration, fn func(line string)) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		if lines--; lines == 0 {
			defer time.AfterFunc(delay, func() { _ = cmd.Process.Kill() }).Stop()
		}
		fn(strings.TrimSuffix(line, "\n"))
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		return fmt.Errorf("the child ended by itself: %v", err)
	}
	return nil
}
