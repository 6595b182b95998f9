-- The gateways that an operator has cut off. A fact beside the gateway's state, so that what the gateway was stays as it was.
CREATE TABLE revocations (
	gateway TEXT NOT NULL PRIMARY KEY REFERENCES gateways (id),
	at INTEGER NOT NULL,
	actor TEXT NOT NULL,
	reason TEXT NOT NULL,
	serials TEXT NOT NULL -- of the certificates that were valid, separated by spaces
) WITHOUT ROWID;
