package strictyaml

import (
	"reflect"
	"strings"
)

// maxDepth is how deep configurations are nested, at most.
const maxDepth = 6

// hint says what an unknown key may have been meant for: the key that is nearest by letters, or the place where it belongs. Of what stands
// in the file it repeats nothing.
func hint(key string, t reflect.Type) string {
	best, least, place, found := "", 3, "", false // two letters wrong, at most
	eachKey(t, "", maxDepth, func(name, where string) {
		if name == key && !found {
			place, found = where, true
		}
		if d := distance(key, name); d < least && d < len(name) {
			best, least = name, d
		}
	})
	switch {
	case found && place == "":
		return "; it belongs to the top of the file: is it indented too far?"
	case found:
		return "; it belongs below " + place
	case best != "":
		return "; did you mean " + best + "?"
	}
	return ""
}

// eachKey calls fn for each key of a configuration, with what it stands below: "" at the top, "sources[]" in a list of that name.
func eachKey(t reflect.Type, where string, depth int, fn func(name, where string)) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		if t.Kind() == reflect.Slice {
			where += "[]"
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || depth == 0 {
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			eachKey(f.Type, where, depth-1, fn)
		case name != "" && name != "-":
			fn(name, where)
			eachKey(f.Type, strings.TrimPrefix(where+"."+name, "."), depth-1, fn)
		}
	}
}

// distance is how many letters have to be changed, added or left out (Levenshtein), or too many for a hint.
func distance(a, b string) int {
	const most = 32
	if len(a) > most || len(b) > most {
		return most
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
