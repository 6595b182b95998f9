-- What classes of gateways may do. lanes: a bit for each, as telemetry.Lane. A rate of 0 is none.
CREATE TABLE profiles (
	name TEXT NOT NULL PRIMARY KEY,
	lanes INTEGER NOT NULL,
	publishes INTEGER NOT NULL, -- per second
	bytes INTEGER NOT NULL,     -- of frames, per second
	at INTEGER NOT NULL,
	actor TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO profiles (name, lanes, publishes, bytes, at, actor) VALUES ('default', 15, 0, 0, 0, '');
