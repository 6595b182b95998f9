// Package nearest finds what a mistyped word was meant to be.
package nearest

import "slices"

// Hint is "; did you mean WORD?" for the word that is nearest to what was typed, and "" where none is near.
func Hint(typed string, words []string) string {
	if w := Word(typed, words); w != "" {
		return "; did you mean " + w + "?"
	}
	return ""
}

// Word is the one that takes the fewest changes to become of what was typed: a letter that is missing, too many or another, or two that are
// swapped. "" where the fewest are more than two, or as many as the word has letters. Of words as near as each other the first of the alphabet.
func Word(typed string, words []string) (best string) {
	if len(typed) > 40 {
		return ""
	}
	fewest := 3
	for _, w := range slices.Sorted(slices.Values(words)) {
		if n := changes(typed, w); n < fewest && n < len(w) {
			best, fewest = w, n
		}
	}
	return best
}

// changes is the optimal string alignment distance, in bytes.
func changes(a, b string) int {
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			other := 1
			if a[i-1] == b[j-1] {
				other = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+other)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
