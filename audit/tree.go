package audit

import (
	"crypto/sha256"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// tree hashes leaves one after the other by RFC 6962, section 2.1, and keeps only the roots of the complete subtrees at its
// right edge: 64 hashes at most, however long the log is.
type tree struct {
	size uint64
	edge []tlog.Hash
}

// add appends a leaf. Each bit that carries when size grows joins two complete subtrees of equal height.
func (t *tree) add(leaf tlog.Hash) {
	t.edge = append(t.edge, leaf)
	for n := t.size; n&1 == 1; n >>= 1 {
		last := len(t.edge) - 1
		t.edge[last-1] = tlog.NodeHash(t.edge[last-1], t.edge[last])
		t.edge = t.edge[:last]
	}
	t.size++
}

// root joins the subtrees from the right; of no leaves it is SHA-256 of nothing.
func (t *tree) root() tlog.Hash {
	if len(t.edge) == 0 {
		return sha256.Sum256(nil)
	}
	h := t.edge[len(t.edge)-1]
	for i := len(t.edge) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.edge[i], h)
	}
	return h
}

// treeRoot is the root over leaf hashes.
func treeRoot(leaves []tlog.Hash) tlog.Hash {
	var t tree
	for _, h := range leaves {
		t.add(h)
	}
	return t.root()
}

// treeProof is the audit path of leaf i (RFC 6962, section 2.1.1), which tlog.CheckRecord verifies. i must be below len(leaves).
func treeProof(leaves []tlog.Hash, i int) []tlog.Hash {
	if len(leaves) <= 1 {
		return []tlog.Hash{}
	}
	split := 1 << (bits.Len(uint(len(leaves)-1)) - 1) // the largest power of two below the length
	if i < split {
		return append(treeProof(leaves[:split], i), treeRoot(leaves[split:]))
	}
	return append(treeProof(leaves[split:], i-split), treeRoot(leaves[:split]))
}
