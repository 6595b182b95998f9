-- The ingest nodes of this server. One that was removed keeps its row until its name is used again.
CREATE TABLE nodes (
	name TEXT NOT NULL PRIMARY KEY,
	spki BLOB NOT NULL CHECK (length(spki) = 32), -- SHA-256 of its key, which stays as long as the node does
	hosts TEXT NOT NULL, -- names and addresses of its gateways' port, separated by spaces
	login TEXT NOT NULL, -- its role in the database
	added INTEGER NOT NULL,
	removed INTEGER NOT NULL -- 0: it is one
) WITHOUT ROWID;
