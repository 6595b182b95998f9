package telemetry

import (
	"fmt"
	"strings"

	"wardlink/internal/spiffe"
)

// Doc names a document that the hospital sends to a gateway. The texts are part of the wire format.
type Doc string

// The documents.
const (
	DocConfig     Doc = "config"     // signed configuration
	DocTime       Doc = "time"       // signed time, for a gateway that does not trust its clock
	DocHint       Doc = "hint"       // a Hint: unsigned, to come back later
	DocFirmware   Doc = "firmware"   // a release to fetch
	DocResend     Doc = "resend"     // batches that a restored server asks for again
	DocRefused    Doc = "refused"    // a Refusal
	DocWipe       Doc = "wipe"       // a signed order to drain and wipe (enroll/wipe)
	DocCheckpoint Doc = "checkpoint" // the log's last signed checkpoint
	DocHello      Doc = "hello"      // a Welcome
)

var docs = [...]Doc{DocConfig, DocTime, DocHint, DocFirmware, DocResend, DocRefused, DocWipe, DocCheckpoint, DocHello}

const (
	topicRoot = "wl/1/"
	keyLevel  = "key"
)

// UpTopic is where a gateway publishes a lane's batches.
func UpTopic(gateway string, lane Lane) string { return topicRoot + gateway + "/up/" + lane.String() }

// KeyTopic is where a gateway publishes its signed sealing records, each before the first batch of this connection that needs it.
func KeyTopic(gateway string) string { return topicRoot + gateway + "/up/" + keyLevel }

// DownFilter is the one subscription a gateway may make.
func DownFilter(gateway string) string { return topicRoot + gateway + "/down/#" }

// DownTopic is where a gateway receives a kind of document.
func DownTopic(gateway string, doc Doc) string { return topicRoot + gateway + "/down/" + string(doc) }

// ParseUp reads a topic of UpTopic or, with key true, of KeyTopic. Whether the publisher is that gateway is for the caller to check.
func ParseUp(topic string) (gateway string, lane Lane, key bool, err error) {
	gateway, last, err := split(topic, "up")
	if err != nil {
		return "", 0, false, err
	}
	if last == keyLevel {
		return gateway, 0, true, nil
	}
	if lane, err = ParseLane(last); err != nil {
		return "", 0, false, fmt.Errorf("topic %q: %w", topic, err)
	}
	return gateway, lane, false, nil
}

// ParseDown reads a topic of DownTopic.
func ParseDown(topic string) (gateway string, doc Doc, err error) {
	gateway, last, err := split(topic, "down")
	if err != nil {
		return "", "", err
	}
	for _, doc := range docs {
		if last == string(doc) {
			return gateway, doc, nil
		}
	}
	return "", "", fmt.Errorf("topic %q: document %q is unknown", topic, last)
}

// maxTopic is longer than any topic of ours; what is over it is not looked at, nor quoted.
const maxTopic = 128

// split reads wl/1/<gateway>/<direction>/<last> and nothing else: no empty, extra or wildcard levels.
func split(topic, direction string) (gateway, last string, err error) {
	if len(topic) > maxTopic {
		return "", "", fmt.Errorf("topic of %d bytes; expected at most %d", len(topic), maxTopic)
	}
	rest, ok := strings.CutPrefix(topic, topicRoot)
	levels := strings.Split(rest, "/")
	if !ok || len(levels) != 3 || levels[1] != direction {
		return "", "", fmt.Errorf("topic %q: expected %s<gateway>/%s/<name>", topic, topicRoot, direction)
	}
	if err := spiffe.ValidName(levels[0]); err != nil {
		return "", "", fmt.Errorf("topic %q: %w", topic, err)
	}
	return levels[0], levels[2], nil
}
