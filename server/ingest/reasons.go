package ingest

// Why something was refused: the texts of audit events, of down/refused and of metric labels. They are constant, so that nothing
// that a peer sent can enter the log through them.
const (
	reasonMalformed      = "packet is malformed"
	reasonTooLong        = "packet is longer than allowed"
	reasonPacketType     = "packet type is not part of the profile"
	reasonFlags          = "reserved flags are set"
	reasonProtocol       = "protocol is not MQTT 3.1.1"
	reasonWill           = "a will is not part of the profile"
	reasonCredentials    = "user name is not an agent's hello, or there is a password"
	reasonVersions       = "agent and server have no protocol version in common"
	reasonSession        = "clean session must be set"
	reasonClientID       = "client id is not the gateway of the certificate"
	reasonFirst          = "first packet is not CONNECT"
	reasonConnectTimeout = "no CONNECT in time"
	reasonSecondConnect  = "second CONNECT"
	reasonPending        = "too many connections wait for their CONNECT"
	reasonSessions       = "too many sessions"
	reasonDraining       = "server is draining"
	reasonOverload       = "server is overloaded"
	reasonGeneration     = "session cannot be counted among those of other nodes"

	reasonQoS0     = "QoS 0 publishes are not part of the profile"
	reasonQoS2     = "QoS 2 is not part of the profile"
	reasonRetain   = "retain is not part of the profile"
	reasonPacketID = "packet id is 0"
	reasonInUse    = "packet id is in use"

	reasonSystem  = "topic begins with $"
	reasonTopic   = "topic is not part of the profile"
	reasonForeign = "topic belongs to another gateway"
	reasonFilter  = "filter is not one of the gateway's own down topics"

	reasonLane          = "lane is not allowed to this gateway"
	reasonFrame         = "frame is damaged or of an unknown version"
	reasonFrameLane     = "lane in the frame is not the topic's"
	reasonSealing       = "sealing record was not brought on this connection"
	reasonSealingEpoch  = "epoch or records key in the frame is not the sealing record's"
	reasonSealingRecord = "sealing record cannot be read"
	reasonUnproven      = "no signature proves its sealing period: the board did not sign it before it died"
	reasonSealings      = "too many sealing records on one connection"

	reasonNoIdentity     = "no verified client certificate over TLS 1.3"
	reasonCertificate    = "certificate holds no identity of this trust domain"
	reasonKind           = "certificate is not a gateway's"
	reasonExpired        = "certificate has expired"
	reasonFormerKey      = "certificate has expired and is not of the gateway's newest key"
	reasonNotAdmitted    = "gateway is not admitted by the registry"
	reasonRevoked        = "gateway is revoked"
	reasonWindow         = "gateway is outside of its validity"
	reasonSuspended      = "gateway is suspended"
	reasonDecommissioned = "gateway is decommissioned"
	reasonReplaced       = "the board of this certificate was replaced"
	reasonRival          = "another agent of this gateway is connected, with a newer certificate"
	reasonRegistry       = "registry cannot be asked"
	reasonJournal        = "journal cannot be written"
	reasonOverflow       = "other"
)

// Why a session ended: the Reason of SessionClosed.
const (
	endDisconnect = "disconnect" // the gateway said goodbye
	endLost       = "lost"       // the connection ended without DISCONNECT
	endSilent     = "silent"     // nothing within 1.5 times the keep-alive
	endSlow       = "slow"       // the gateway did not read what we sent
	endRefused    = "refused"    // a Refused event says what
	endExpired    = "expired"    // the certificate's NotAfter
	endTakeover   = "takeover"   // a newer connection of the same identity, here or at another node
	endRevoked    = "revoked"    // an operator cut the gateway off, or the registry does not know it any more
	endSuspended  = "suspended"  // an operator cut it off for a time
	endEnded      = "decommissioned"
	endReplaced   = "replaced" // this board of it is its own no longer
	endWindow     = "outside its validity"
	endBlind      = "blind"    // the registry could not be asked for too long
	endDraining   = "draining" // the server is stopping
	endError      = "error"    // the journal failed, or a fault of our own
)
