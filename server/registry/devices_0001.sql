-- What TPMs said of themselves at their newest attestation, for inventories: nothing is decided by it.
CREATE TABLE devices (
	ek BLOB NOT NULL PRIMARY KEY CHECK (length(ek) = 32),
	manufacturer TEXT NOT NULL,
	model TEXT NOT NULL,
	firmware TEXT NOT NULL,
	serial TEXT NOT NULL, -- the box's own word
	at INTEGER NOT NULL
) WITHOUT ROWID;
