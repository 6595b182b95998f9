package hl7

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// seed reads one of the messages that devices send, with <CR> line ends.
func seed(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "messages", name))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(b, []byte("\n"), []byte("\r"))
}

// seeds is all of them; an empty folder fails.
func seeds(t testing.TB) [][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", "messages", "*.hl7"))
	if err != nil || len(names) < 5 {
		t.Fatalf("%d seeds: %v", len(names), err)
	}
	var all [][]byte
	for _, n := range names {
		all = append(all, seed(t, filepath.Base(n)))
	}
	return all
}

// odd is what is sent by mistake, by an attacker, or by a device that has its own mind.
var odd = []string{
	"",
	"MSH",
	"MSH|",
	"MSH||",
	"MSH|^~\\&",
	"MSH|^~\\&|",
	"MSHA^~\\&|a",
	"MSH|^^\\&|a",
	"MSH|^~\\&#|A|B|C|D|20260101||ORU^R01|1|P|2.7|||||||||\rOBX",
	"\ufeff\r\nMSH|^~\\&|A|B|C|D|20260101120000||ORU^R01|1|P|2.6\rOBX|1|NM|16770^^MDC||80|2720\r",
	"MSH$%*!@$A$B$C$D$20260101120000$$ORU%R01$1$P$2.6\rPID$$$1%%%X@1.2@ISO\rOBX$1$NM$147842%%MDC$$80$264864%%MDC$$a*b|c$$$R\r",
	"MSH|^~\\&|A|B|C|D|20260101120000||ADT^A01|1|P|2.6|||NE|NE\rEVN|A01\rPID|||1\r",
	"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
	"MSH|^~\\&|A|B|C|D|20260101120000||ORU^R01|1|P|2.6||||||8859/1\rOBX|1|ST|1^\xe9^L||\\XE9\\ \\ \\.br\\\\F\\\\Z1\\\xe9\r",
	"MSH|^~\\&|A|B|C|D|20260101120000||ORU^R01|1|P|2.6||||||UNICODE UTF-8\rOBX|1|ST|1^\xe9^L||\xff\xfe\r",
	"MSH|^~\\&|\x00|\x1b|||||ORU^R01|\x07id|P|2.6|||ER|ER\r",
}
