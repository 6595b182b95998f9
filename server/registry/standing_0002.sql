-- The ends of gateways. order_doc is what the gateway is told, signed; word is its signed answer, absent until it comes, if ever.
CREATE TABLE decommissions (
	gateway TEXT NOT NULL PRIMARY KEY REFERENCES gateways (id),
	at INTEGER NOT NULL,
	actor TEXT NOT NULL,
	reason TEXT NOT NULL,
	drain INTEGER NOT NULL,   -- 1: the gateway first hands over what waits
	order_doc BLOB NOT NULL,
	event BLOB NOT NULL,      -- id of gateway.decommissioned
	word BLOB,
	confirmed INTEGER NOT NULL, -- when the word came; 0: not yet
	confirmation BLOB         -- id of gateway.wiped
) WITHOUT ROWID;
