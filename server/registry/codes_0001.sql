-- One-time codes that wait to be given at a gateway's first attestation. The code itself is nowhere.
CREATE TABLE enrol_codes (
	gateway TEXT NOT NULL PRIMARY KEY REFERENCES gateways (id),
	hash BLOB NOT NULL CHECK (length(hash) = 32), -- SHA-256
	ends INTEGER NOT NULL,
	tries INTEGER NOT NULL,   -- wrong ones
	made INTEGER NOT NULL,
	actor TEXT NOT NULL
) WITHOUT ROWID;
