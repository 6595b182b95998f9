package translog

import (
	"fmt"
	"path/filepath"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/mod/sumdb/tlog"

	"wardlink/audit"
	"wardlink/internal/durable"
)

// maxMark bounds the mark; its greatest part is the origin, at most 260 bytes.
const maxMark = 1 << 10

// mark says how far journal and log are known to agree: the acts of the journal up to Seq are exactly the first Size leaves.
type mark struct {
	Version uint64        `cbor:"1,keyasint"`
	Origin  string        `cbor:"2,keyasint"`
	Seq     uint64        `cbor:"3,keyasint"`
	Entry   audit.EventID `cbor:"4,keyasint"` // id of the journal's entry at Seq; tells another journal from this one
	Size    uint64        `cbor:"5,keyasint"`
	Root    tlog.Hash     `cbor:"6,keyasint"` // root of the first Size leaves
}

const markVersion = 1

// markFile is the mark's pair of files: a torn write leaves the former mark, which only means that more is recognised at the next start.
type markFile struct{ pair *durable.AB }

// openMark reads the mark beside the log. stored is false when there never was one.
func openMark(dir string) (f *markFile, m mark, stored bool, err error) {
	path := filepath.Join(dir, stateDir, markName)
	pair, data, err := durable.OpenAB(path, maxMark)
	if err != nil {
		return nil, mark{}, false, fmt.Errorf("log's mark: %w", err)
	}
	if data == nil {
		return &markFile{pair}, mark{}, false, nil
	}
	if err := cbor.Unmarshal(data, &m); err == nil && m.Version > markVersion {
		return nil, mark{}, false, fmt.Errorf("log's mark %s: version %d, this program knows version %d: %w", path, m.Version, markVersion, durable.ErrNewer)
	} else if err != nil || m.Version != markVersion {
		return nil, mark{}, false, fmt.Errorf("log's mark %s: not of version %d: %w", path, markVersion, ErrUnsound)
	}
	return &markFile{pair}, m, true, nil
}

// store makes m durable.
func (f *markFile) store(m mark) error {
	m.Version = markVersion
	data, err := cbor.Marshal(m)
	if err != nil {
		return fmt.Errorf("log's mark: %w", err)
	}
	if err := f.pair.Store(data); err != nil {
		return fmt.Errorf("log's mark: %w", err)
	}
	return nil
}
