package segment

import (
	"errors"

	bolt "go.etcd.io/bbolt/errors"
)

// NotBolt says whether an error of somebody else's bbolt, such as that of a library's store, means that the file is none of bbolt's or
// that both of its meta pages are damaged: opening it again will not help.
func NotBolt(err error) bool {
	return errors.Is(err, bolt.ErrInvalid) || errors.Is(err, bolt.ErrChecksum) || errors.Is(err, bolt.ErrVersionMismatch)
}
