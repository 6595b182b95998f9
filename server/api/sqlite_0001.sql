-- The signed configuration in force for each gateway. The version only grows.
CREATE TABLE configurations (
	gateway TEXT NOT NULL PRIMARY KEY REFERENCES gateways (id),
	version INTEGER NOT NULL,
	settings BLOB NOT NULL CHECK (length(settings) = 32),
	document BLOB NOT NULL,
	issued INTEGER NOT NULL
) WITHOUT ROWID;
