// Package node is what an ingest node and the server that it belongs to say to each other, at the gateways' port of that server, by HTTP
// over mutual TLS under the node's certificate (spiffe://<trust domain>/node/<name>):
//
//	POST /node/certificate   the node's next certificate, or one for its gateways' port
//	GET  /node/documents     what a gateway is sent at its SUBSCRIBE
//	POST /node/news          whose documents have changed, whether the CA is well; the node says which sessions it holds
//	GET  /node/ca            how the CA is
//
// and every other path is a gateway's request that the node passes on, with the gateway's address and certificate in two headers. Where the
// service ca runs in processes of its own, enrolment, certificates and the question after the CA go to those, each request to the next of them.
// A process with the service api that does not hold the CA's keys asks them, under its certificate service/api,
//
//	GET  /node/ca            how the CA is
//	POST /node/issue         a certificate of the server's own ports, or of a service account
//
// Parties: Client and Proxy are the node's half, Port is the server's. A node is trusted with little: it is told the documents of gateways,
// which are signed and go to the gateways through it anyway; it may have a certificate for its own gateways' port; and its word counts for
// the address of a peer. For the identity of a gateway behind it only the gateway's certificate counts, whose chain the server verifies
// again; that its key was proven is the node's word, so nothing may be served on the strength of it that would matter to a thief of a node.
// The headers are believed of nobody else, and are taken off everything that anybody else sends.
package node

import (
	"time"

	"wardlink/server/ingest"
	"wardlink/telemetry"
)

// The paths of a node's own requests.
const (
	prefix          = "/node/"
	certificatePath = prefix + "certificate"
	documentsPath   = prefix + "documents"
	newsPath        = prefix + "news"
	caPath          = prefix + "ca"
	issuePath       = prefix + "issue"
)

// The headers of a request that a node passes on.
const (
	peerHeader  = "Wardlink-Peer"       // ip:port of who asked the node
	chainHeader = "Wardlink-Peer-Chain" // what it showed in its handshake: DER, base64, leaf first, separated by commas; absent: nothing
	kindQuery   = "kind"                // of a certificate: kindNode or kindService
	kindNode    = "node"                // the node's own, for the key that it is known by
	kindService = "service"             // of the node's gateways' port
	pemType     = "application/x-pem-file"
)

// Bounds of what either half takes from the other.
const (
	maxIssue    = 16 << 10 // an issueRequest: 32 names of 255 bytes
	maxRequest  = 1 << 10  // of a certificate: a CSR of a P-256 key has some 400 bytes
	maxNews     = 32 << 20 // 20,000 sessions take some 9 MB
	maxAnswer   = 64 << 20 // documents of one gateway: 16 of at most telemetry.MaxDocument, in base64
	maxChain    = 4        // certificates
	maxChanges  = 1 << 16  // gateways' changes that the server remembers; a node that is further behind sends all documents again
	serviceLife = 7 * 24 * time.Hour
	accessLife  = 24 * time.Hour // of a service account's certificate
	// Life is how long a node's own certificate lives. It renews it at half of that: a node that was off for longer is added again.
	Life = 30 * 24 * time.Hour
)

// Document is one of a gateway's documents.
type Document struct {
	Doc  telemetry.Doc `json:"doc"`
	Body []byte        `json:"body"`
}

// Report is what a node says of itself. A server shows it beside what its own sessions say; it decides nothing.
type Report struct {
	Sessions []ingest.SessionInfo      `json:"sessions"`
	Traffic  map[string]ingest.Traffic `json:"traffic"` // by gateway, of these sessions
	Rates    map[string]ingest.Rate    `json:"rates"`   // by network or gateway
	Parked   map[string]ingest.Parked  `json:"parked"`  // by gateway
	Rivals   map[string]ingest.Rival   `json:"rivals,omitempty"`
}

// News asks for what has changed.
type News struct {
	Instance string  `json:"instance"` // of the server's process that After is of; "" at first
	After    uint64  `json:"after"`    // number of the last change that the node knows
	Report   *Report `json:"report,omitempty"`
}

// Answer is what a server says to News.
type Answer struct {
	Instance string    `json:"instance"`
	Last     uint64    `json:"last"`
	All      bool      `json:"all,omitempty"`      // it is not known which: all gateways' documents may have changed
	Gateways []string  `json:"gateways,omitempty"` // whose documents have
	CAWell   bool      `json:"ca_well"`
	CASince  time.Time `json:"ca_since"`
}

// services are those that the process with the service api has ports of.
var services = []string{"ingest", "fhir", "api"}

// caState is the CA's judgement of itself, with the certificates that it issues under.
type caState struct {
	Well        bool      `json:"well"`
	Since       time.Time `json:"since"`
	Reason      string    `json:"reason,omitempty"`
	Issuing     []byte    `json:"issuing,omitempty"` // DER
	Attestation []byte    `json:"attestation,omitempty"`
}

// issueRequest asks for a certificate.
type issueRequest struct {
	ID       string   `json:"id"`     // SPIFFE
	Public   []byte   `json:"public"` // PKIX DER
	Seconds  int64    `json:"seconds"`
	DNSNames []string `json:"dns_names,omitempty"`
	IPs      []string `json:"ips,omitempty"`
	Actor    string   `json:"actor"` // who asked the API, and from where; "server" for the server's own ports
	Serial   string   `json:"serial,omitempty"`
	Peer     string   `json:"peer,omitempty"`
}

// chainAnswer is what it is answered with, the leaf first.
type chainAnswer struct {
	Chain [][]byte `json:"chain"` // DER
}
