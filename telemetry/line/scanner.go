package line

import "errors"

var (
	errDeep   = errors.New("too deep")
	errBroken = errors.New("not CBOR")
)

// scanner finds the end of a CBOR item byte by byte, so that a slow sender costs no second look. It accepts what is well-formed (RFC
// 8949, 5.1), arrays and maps without a length included, but neither strings in chunks nor anything deeper than MaxDepth. The zero scanner
// is before the first byte.
type scanner struct {
	left  [MaxDepth + 1]uint64 // per level: items still to come, or one of the three below
	depth int
	pass  uint64 // bytes of a string still to come
	head  byte   // the initial byte whose argument is read
	need  int    // bytes of the argument still to come
	arg   uint64
	begun bool
	tag   bool // a tag was read, and its item must follow
}

// What may come where a length was left open.
const (
	openArray = 1<<64 - 1 - iota // an item, or the end
	openKey                      // a key, or the end
	openValue                    // a key's value
)

// next takes one byte. done tells that it is the item's last.
func (s *scanner) next(c byte) (done bool, err error) {
	if !s.begun {
		s.begun, s.left[0] = true, 1
	}
	switch {
	case s.pass > 0:
		if s.pass--; s.pass > 0 {
			return false, nil
		}
		return s.end(), nil
	case s.need > 0:
		s.arg = s.arg<<8 | uint64(c)
		if s.need--; s.need > 0 {
			return false, nil
		}
		return s.item()
	}
	tagged := s.tag
	s.head, s.arg, s.tag = c, uint64(c&31), false
	switch info := c & 31; {
	case c == 0xff:
		if l := s.left[s.depth]; tagged || l != openArray && l != openKey {
			return false, errBroken
		}
		s.depth--
		return s.end(), nil
	case info >= 24 && info <= 27:
		s.arg, s.need = 0, 1<<(info-24)
		return false, nil
	case info == 31:
		switch c >> 5 {
		case 4:
			return false, s.enter(openArray)
		case 5:
			return false, s.enter(openKey)
		}
		return false, errBroken
	case info > 27:
		return false, errBroken
	}
	return s.item()
}

// item acts on a head that is whole.
func (s *scanner) item() (done bool, err error) {
	switch s.head >> 5 {
	case 2, 3:
		if s.arg > 0 {
			s.pass = s.arg
			return false, nil
		}
	case 4, 5:
		n := s.arg
		if n > 1<<32 {
			return false, errBroken // no message is so long
		}
		if s.head>>5 == 5 {
			n *= 2
		}
		if n > 0 {
			return false, s.enter(n)
		}
	case 6:
		s.tag = true // the item itself follows
		return false, nil
	case 7:
		if s.head&31 == 24 && s.arg < 32 {
			return false, errBroken
		}
	}
	return s.end(), nil
}

func (s *scanner) enter(n uint64) error {
	if s.depth == MaxDepth {
		return errDeep
	}
	s.depth++
	s.left[s.depth] = n
	return nil
}

// end ends an item, and with it those of which it was the last.
func (s *scanner) end() bool {
	for {
		switch s.left[s.depth] {
		case openArray:
			return false
		case openKey:
			s.left[s.depth] = openValue
			return false
		case openValue:
			s.left[s.depth] = openKey
			return false
		}
		if s.left[s.depth]--; s.left[s.depth] > 0 {
			return false
		}
		if s.depth == 0 {
			return true
		}
		s.depth--
	}
}
