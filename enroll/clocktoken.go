package enroll

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"wardlink/internal/spiffe"
)

// clockPurpose begins every message that the config key signs to set a gateway's floor back.
const clockPurpose = "wardlink/clock-reset/1\x00"

// ClockChallenge is what a gateway shows to whoever asks the hospital for a token that sets its floor back: 80 random bits, of one running
// agent, used for one token. Without it a token that was once good could set the floor back for ever.
type ClockChallenge [10]byte

// clockTokenLen is a token's length: Unix milliseconds, big-endian, and the signature.
const clockTokenLen = 8 + ed25519.SignatureSize

// maxClockToken bounds a token's text: 116 letters, and what stands between them when it was read out or wrapped.
const maxClockToken = 512

// NewClockChallenge draws one.
func NewClockChallenge() (c ClockChallenge) {
	rand.Read(c[:])
	return c
}

// String is four groups of four letters, as fingerprints are.
func (c ClockChallenge) String() string { return grouped(c[:]) }

// ParseClockChallenge reads what String writes, also in lower case and with other gaps.
func ParseClockChallenge(text string) (c ClockChallenge, err error) {
	data, err := ungrouped(text)
	if err != nil || len(data) != len(c) {
		return c, errors.New("challenge: expected the 16 letters that 'wardlink-agent clock' shows on the gateway, such as ABCD-EFGH-IJKL-MNOP")
	}
	copy(c[:], data)
	return c, nil
}

// clockMessage is what is signed. Everything before the name has a fixed length, so no two tokens have one message.
func clockMessage(gateway string, c ClockChallenge, at []byte) []byte {
	m := append([]byte(clockPurpose), c[:]...)
	return append(append(m, at...), gateway...)
}

// SignClockToken makes the token that sets a gateway's floor back to now, in answer to its challenge. Whoever calls it vouches that now is
// the time.
func SignClockToken(gateway string, c ClockChallenge, now time.Time, key ed25519.PrivateKey) (string, error) {
	if err := spiffe.ValidName(gateway); err != nil {
		return "", fmt.Errorf("clock token: gateway: %w", err)
	}
	if now.Before(firstTime) || now.After(lastTime) {
		return "", fmt.Errorf("clock token: %s is not signed: it is no present", now.UTC().Format(time.RFC3339))
	}
	at := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
	return grouped(append(at, ed25519.Sign(key, clockMessage(gateway, c, at))...)), nil
}

// VerifyClockToken is the one decision whether a token sets a gateway's floor back, and to what: signed by the config key as such, for this
// gateway and this challenge. The caller never takes a challenge twice.
func VerifyClockToken(token string, key ed25519.PublicKey, gateway string, c ClockChallenge) (time.Time, error) {
	data, err := ungrouped(token)
	if err != nil || len(data) != clockTokenLen {
		return time.Time{}, fmt.Errorf("clock token: expected the %d letters that 'wardlink clock token' prints; is some of it missing?", (clockTokenLen*8+4)/5)
	}
	at, signature := data[:8], data[8:]
	if !ed25519.Verify(key, clockMessage(gateway, c, at), signature) {
		return time.Time{}, fmt.Errorf("clock token: it is not this hospital's for gateway %s and challenge %s: a letter is wrong, or it answers an earlier challenge", gateway, c)
	}
	t := time.UnixMilli(int64(binary.BigEndian.Uint64(at))).UTC()
	if t.Before(firstTime) || t.After(lastTime) {
		return time.Time{}, errors.New("clock token: its time is no present")
	}
	return t, nil
}

// grouped writes bytes for people to read out and to paste: base32 in groups of four.
func grouped(data []byte) string {
	s := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(data)
	var b strings.Builder
	for i := 0; i < len(s); i += 4 {
		if i > 0 {
			b.WriteByte('-')
		}
		b.WriteString(s[i:min(i+4, len(s))])
	}
	return b.String()
}

// ungrouped reads them. What cannot be a letter of base32 and is taken for one by people is what it looks like.
func ungrouped(text string) ([]byte, error) {
	if len(text) > maxClockToken {
		return nil, fmt.Errorf("%d characters; at most %d", len(text), maxClockToken)
	}
	text = strings.Map(func(r rune) rune {
		switch r {
		case ' ', '-', '\t', '\r', '\n':
			return -1
		case '0':
			return 'O'
		case '1':
			return 'I'
		case '8':
			return 'B'
		}
		return r
	}, strings.ToUpper(text))
	data, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(text)
	if err == nil && base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(data) != text {
		err = errors.New("bits are left over")
	}
	return data, err
}
