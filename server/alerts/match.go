package alerts

// match says whether text fits pattern, in which * stands for any run of bytes, also an empty one and one with slashes, and ? for one
// byte. It takes at most len(pattern) x len(text) steps.
func match(pattern, text string) bool {
	p, t := 0, 0
	star, mark := -1, 0 // the last *, and where its run would end next
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
