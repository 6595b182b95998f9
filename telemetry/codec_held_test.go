package telemetry

import (
	"runtime"
	"strings"
	"testing"
)

// A small frame that inflates to a megabyte which no message names must not keep it: who opens batches has a thousand of them at a time.
func TestDecodedBatchKeepsWhatItSays(t *testing.T) {
	b := vitals(1, 10)
	w := newWireBatch(&b)
	w.Contexts = append(w.Contexts, wireContext{Source: strings.Repeat("A", 1_000_000)})
	plain, err := encoding.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	data, err := pack(plain)
	if err != nil {
		t.Fatal(err)
	}
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const batches = 64
	before := heap()
	held := make([]Batch, batches)
	for i := range held {
		if held[i], err = Decode(data); err != nil {
			t.Fatal(err)
		}
	}
	if each := (heap() - before) / batches; each > 100_000 {
		t.Errorf("a batch of one message in a frame of %d bytes keeps %d bytes", len(data), each)
	}
	runtime.KeepAlive(held)
}
