-- When the hospital received the first report of each gateway. Of gateways that are older than this table it is the newest that was kept.
CREATE TABLE first_heartbeats (
	gateway TEXT NOT NULL PRIMARY KEY,
	received INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO first_heartbeats (gateway, received) SELECT gateway, received FROM gateway_reports;
