-- Who may do what. Times are Unix milliseconds; 0 means unlimited where a limit is optional.

CREATE TABLE gateways (
	id TEXT NOT NULL PRIMARY KEY,
	site TEXT NOT NULL,
	ward TEXT NOT NULL,
	profile TEXT NOT NULL,
	state TEXT NOT NULL CHECK (state IN ('active', 'suspended', 'quarantined', 'decommissioned')),
	not_before INTEGER NOT NULL,
	not_after INTEGER NOT NULL,
	added INTEGER NOT NULL
) WITHOUT ROWID;

-- One TPM has several endorsement keys. The primary key is what makes one EK belong to one gateway.
CREATE TABLE gateway_eks (
	ek BLOB NOT NULL PRIMARY KEY CHECK (length(ek) = 32),
	gateway TEXT NOT NULL REFERENCES gateways (id)
) WITHOUT ROWID;
CREATE INDEX gateway_eks_gateway ON gateway_eks (gateway);

-- The history of device keys. A key is never removed: sealing records of last year are verified with it.
CREATE TABLE gateway_keys (
	spki BLOB NOT NULL PRIMARY KEY CHECK (length(spki) = 32),
	gateway TEXT NOT NULL REFERENCES gateways (id),
	public BLOB NOT NULL,
	added INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX gateway_keys_gateway ON gateway_keys (gateway);

CREATE TABLE gateway_certificates (
	serial TEXT NOT NULL PRIMARY KEY,
	spki BLOB NOT NULL REFERENCES gateway_keys (spki),
	not_before INTEGER NOT NULL,
	not_after INTEGER NOT NULL,
	added INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX gateway_certificates_spki ON gateway_certificates (spki, added);

-- TPMs that have proven an EK which nobody has entered. Bounded: the one not seen for longest makes room.
CREATE TABLE waiting (
	ek BLOB NOT NULL PRIMARY KEY CHECK (length(ek) = 32),
	fingerprint TEXT NOT NULL,
	ek_public BLOB NOT NULL,
	manufacturer TEXT NOT NULL,
	model TEXT NOT NULL,
	chain INTEGER NOT NULL,
	peer TEXT NOT NULL,
	first_seen INTEGER NOT NULL,
	last_seen INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX waiting_fingerprint ON waiting (fingerprint);
CREATE INDEX waiting_last_seen ON waiting (last_seen);

-- Service accounts of the hospital's systems.
CREATE TABLE access (
	serial TEXT NOT NULL PRIMARY KEY,
	name TEXT NOT NULL,
	spki BLOB NOT NULL CHECK (length(spki) = 32),
	not_after INTEGER NOT NULL,
	added INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX access_name ON access (name, added);

-- Every change of who may do what raises the revision in its own transaction; each node polls it.
CREATE TABLE registry_state (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	revision INTEGER NOT NULL,
	waiting_dropped INTEGER NOT NULL
);
INSERT INTO registry_state (one, revision, waiting_dropped) VALUES (1, 1, 0);
