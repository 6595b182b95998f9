package source

import (
	"errors"
	"fmt"
	"syscall"

	"wardlink/internal/listener"
)

// Explain says of a port that cannot be opened what holds it up and what to do.
func Explain(address string, err error) error {
	var taken *listener.Taken
	switch {
	case errors.As(err, &taken):
		return fmt.Errorf("port %w; stop it, or give this source another port", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is not an address of this machine at present; check 'mllp:' of this source and the network interface: %w", address, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("port %s is reserved for root; choose one above 1023: %w", address, err)
	}
	return fmt.Errorf("%s: %w; choose an address of this machine and a free port", address, err)
}
