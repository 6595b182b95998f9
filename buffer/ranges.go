package buffer

import "slices"

// span is a run of numbers, both ends included.
type span struct{ from, to uint64 }

// ranges is a set of numbers as sorted runs with a gap between any two. Numbers are acknowledged nearly in order, so a set over
// millions of them has a handful of runs.
type ranges struct{ spans []span }

// after is the index of the first run that ends at n or later.
func (r *ranges) after(n uint64) int {
	i, _ := slices.BinarySearchFunc(r.spans, n, func(s span, n uint64) int {
		if s.to < n {
			return -1
		}
		return 1
	})
	return i
}

// end says whether n is in the set and, if so, where its run ends.
func (r *ranges) end(n uint64) (to uint64, in bool) {
	if r == nil {
		return 0, false
	}
	if i := r.after(n); i < len(r.spans) && r.spans[i].from <= n {
		return r.spans[i].to, true
	}
	return 0, false
}

// begin says whether n is in the set and, if so, where its run begins.
func (r *ranges) begin(n uint64) (from uint64, in bool) {
	if r == nil {
		return 0, false
	}
	if i := r.after(n); i < len(r.spans) && r.spans[i].from <= n {
		return r.spans[i].from, true
	}
	return 0, false
}

func (r *ranges) has(n uint64) bool {
	_, in := r.end(n)
	return in
}

// add puts n into the set and says whether it was not there.
func (r *ranges) add(n uint64) bool {
	i := r.after(n)
	if i < len(r.spans) && r.spans[i].from <= n {
		return false
	}
	left := i > 0 && r.spans[i-1].to+1 == n
	right := i < len(r.spans) && r.spans[i].from == n+1
	switch {
	case left && right:
		r.spans[i-1].to = r.spans[i].to
		r.spans = slices.Delete(r.spans, i, i+1)
	case left:
		r.spans[i-1].to = n
	case right:
		r.spans[i].from = n
	default:
		r.spans = slices.Insert(r.spans, i, span{n, n})
	}
	return true
}

// remove takes n out of the set and says whether it was there.
func (r *ranges) remove(n uint64) bool {
	i := r.after(n)
	if i == len(r.spans) || r.spans[i].from > n {
		return false
	}
	s := r.spans[i]
	switch {
	case s.from == n && s.to == n:
		r.spans = slices.Delete(r.spans, i, i+1)
	case s.from == n:
		r.spans[i].from++
	case s.to == n:
		r.spans[i].to--
	default:
		r.spans[i].to = n - 1
		r.spans = slices.Insert(r.spans, i+1, span{n + 1, s.to})
	}
	return true
}

// touches says whether any number of from..to is in the set.
func (r *ranges) touches(from, to uint64) bool {
	if r == nil {
		return false
	}
	i := r.after(from)
	return i < len(r.spans) && r.spans[i].from <= to
}

// covers says whether all numbers of from..to are in the set.
func (r *ranges) covers(from, to uint64) bool {
	end, in := r.end(from)
	return in && end >= to
}

// size is how many numbers the set holds.
func (r *ranges) size() uint64 {
	var n uint64
	for _, s := range r.spans {
		n += s.to - s.from + 1
	}
	return n
}
