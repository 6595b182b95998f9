-- Alerts, what silences them, and what is on its way to the targets. Times are Unix milliseconds; 0 where there is none.

-- severity: 1 notice, 2 warning, 3 critical. peak: the highest it had; escalation is measured against it.
CREATE TABLE alerts (
	id TEXT NOT NULL PRIMARY KEY,
	type TEXT NOT NULL,
	subject TEXT NOT NULL,
	severity INTEGER NOT NULL,
	peak INTEGER NOT NULL,
	detail TEXT NOT NULL,       -- JSON object of texts
	opened INTEGER NOT NULL,
	seen INTEGER NOT NULL,      -- the condition held then
	count INTEGER NOT NULL,     -- how often it was raised
	resolved INTEGER NOT NULL,  -- 0: open
	acked INTEGER NOT NULL,
	acked_by TEXT NOT NULL,
	note TEXT NOT NULL,
	told INTEGER NOT NULL,      -- the last message was made then; 0: nobody was told
	messages INTEGER NOT NULL,  -- made so far; part of their ids
	changes INTEGER NOT NULL    -- how many changes are in this row: a repeated write is recognised by it
) WITHOUT ROWID;
CREATE UNIQUE INDEX alerts_open ON alerts (type, subject) WHERE resolved = 0;
CREATE INDEX alerts_resolved ON alerts (resolved) WHERE resolved > 0;

CREATE TABLE alert_silences (
	id TEXT NOT NULL PRIMARY KEY,
	type TEXT NOT NULL,         -- pattern
	subject TEXT NOT NULL,      -- pattern
	since INTEGER NOT NULL,
	until INTEGER NOT NULL,
	by_whom TEXT NOT NULL,
	reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX alert_silences_until ON alert_silences (until);

-- The spool: one row for each message and target, in the order in which the target gets them.
-- state: 0 waits, 1 delivered, 2 given up. Rows of states 1 and 2 go when their event is written.
CREATE TABLE alert_spool (
	position INTEGER PRIMARY KEY AUTOINCREMENT,
	target TEXT NOT NULL,
	message TEXT NOT NULL,
	body BLOB NOT NULL,
	made INTEGER NOT NULL,
	state INTEGER NOT NULL,
	reason TEXT NOT NULL,
	UNIQUE (target, message)
);
CREATE INDEX alert_spool_settled ON alert_spool (state, target) WHERE state > 0;

-- When a gateway was last heard of: it outlives a restart of the server.
CREATE TABLE alert_gateways (
	gateway TEXT NOT NULL PRIMARY KEY,
	heard INTEGER NOT NULL
) WITHOUT ROWID;

-- The server's clock once a minute: proves that the database can be written, and shows a clock that went back over a restart.
CREATE TABLE alert_pulse (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	at INTEGER NOT NULL
);
INSERT INTO alert_pulse (one, at) VALUES (1, 0);
