-- What the batches held, by subject. Times are Unix milliseconds. Texts that repeat from reading to reading are kept once and
-- referred to, since at a reading a second each byte of a row counts 31 million times a year.

-- One stream of batch numbers.
CREATE TABLE streams (
	id INTEGER PRIMARY KEY,
	gateway TEXT NOT NULL,
	epoch BLOB NOT NULL CHECK (length(epoch) = 16),
	lane INTEGER NOT NULL,
	UNIQUE (gateway, epoch, lane)
);

-- Every batch that was journaled, once: its number counts, not how often it was sent.
-- state: 0 pending (waits for its sealing record or its next attempt), 1 opening, 2 stored, 3 dead.
CREATE TABLE batches (
	stream INTEGER NOT NULL,
	number INTEGER NOT NULL,
	frame BLOB NOT NULL,        -- SHA-256 of the whole frame
	sealing BLOB NOT NULL,      -- sealing id; empty when the frame's header cannot be read
	seq INTEGER NOT NULL,       -- position in the journal
	received INTEGER NOT NULL,  -- server's clock
	state INTEGER NOT NULL,
	attempts INTEGER NOT NULL,
	due INTEGER NOT NULL,       -- of a pending batch: not before
	reason TEXT NOT NULL,
	PRIMARY KEY (stream, number)
) WITHOUT ROWID;
CREATE INDEX batches_unsettled ON batches (state, due) WHERE state <> 2;

-- Frames of batches that are pending or dead: the journal does not keep them for ever.
CREATE TABLE batch_frames (
	stream INTEGER NOT NULL,
	number INTEGER NOT NULL,
	frame BLOB NOT NULL,
	UNIQUE (stream, number)
);

-- One number, two frames. The first stands unless it is dead, in which case the next one that was not tried takes its place and it
-- comes here. Bounded: see conflict.go.
CREATE TABLE batch_conflicts (
	stream INTEGER NOT NULL,
	number INTEGER NOT NULL,
	frame BLOB NOT NULL,        -- SHA-256 of the whole frame
	seq INTEGER NOT NULL,
	received INTEGER NOT NULL,
	tried INTEGER NOT NULL,     -- 1: it stood and is dead
	data BLOB,                  -- the frame itself; NULL when there was no room
	UNIQUE (stream, number, frame)
);

-- Journal entries that this database never saw and the journal no longer has: it was restored from a backup that was too old.
CREATE TABLE journal_gaps (
	first INTEGER NOT NULL,
	last INTEGER NOT NULL,
	found INTEGER NOT NULL,     -- server's clock
	PRIMARY KEY (first, last)
) WITHOUT ROWID;

-- Which gateway an epoch belongs to: the one whose verified sealing record named it first.
CREATE TABLE epochs (
	epoch BLOB NOT NULL PRIMARY KEY,
	gateway TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE epoch_conflicts (
	epoch BLOB NOT NULL,
	gateway TEXT NOT NULL,
	seq INTEGER NOT NULL,
	PRIMARY KEY (epoch, gateway)
) WITHOUT ROWID;

-- Sealing records as published. state: 0 waiting (the registry does not know the key yet), 1 valid, 2 refused.
CREATE TABLE sealings (
	gateway TEXT NOT NULL,
	sealing BLOB NOT NULL,
	hash BLOB NOT NULL,         -- SHA-256 of signed
	signed BLOB NOT NULL,
	seq INTEGER NOT NULL,
	state INTEGER NOT NULL,
	due INTEGER NOT NULL,       -- of a waiting one: look again, not before
	reason TEXT NOT NULL,
	PRIMARY KEY (gateway, sealing, hash)
) WITHOUT ROWID;
CREATE INDEX sealings_waiting ON sealings (due) WHERE state = 0;

CREATE TABLE subjects (
	id INTEGER PRIMARY KEY,     -- 0 stands for "the device knows no patient" and has no row
	patient TEXT NOT NULL UNIQUE, -- keyed hash of system and value: the resource's id
	system TEXT NOT NULL,       -- URI of the assigning authority, or empty
	authority TEXT NOT NULL,    -- as first sent
	value TEXT NOT NULL
);
CREATE INDEX subjects_value ON subjects (value);

CREATE TABLE sources (
	id INTEGER PRIMARY KEY,
	gateway TEXT NOT NULL,
	source TEXT NOT NULL,
	UNIQUE (gateway, source)
);

-- One boot of one gateway: monotonic times of one boot are comparable.
CREATE TABLE boots (
	id INTEGER PRIMARY KEY,
	gateway TEXT NOT NULL,
	boot BLOB NOT NULL,
	UNIQUE (gateway, boot)
);

-- What messages of one device at one bed share.
CREATE TABLE origins (
	id INTEGER PRIMARY KEY,
	hash BLOB NOT NULL UNIQUE,
	type TEXT NOT NULL,
	sender TEXT NOT NULL,
	processing TEXT NOT NULL,
	location TEXT NOT NULL,
	visit TEXT NOT NULL
);

-- key: first 128 bits of SHA-256 over gateway, source, digest and copy; it makes a message that was sent again one message.
CREATE TABLE messages (
	id INTEGER PRIMARY KEY,
	key BLOB NOT NULL UNIQUE,
	source INTEGER NOT NULL,
	digest BLOB NOT NULL,
	copy INTEGER NOT NULL,
	stream INTEGER NOT NULL,
	number INTEGER NOT NULL,
	boot INTEGER NOT NULL,
	subject INTEGER NOT NULL,
	origin INTEGER NOT NULL,
	control TEXT NOT NULL,
	sent_at TEXT NOT NULL,
	time TEXT NOT NULL,         -- device time as sent of its first reading
	wall INTEGER NOT NULL,      -- received by the gateway, its clock
	mono INTEGER NOT NULL,      -- received by the gateway, milliseconds since its boot
	journaled INTEGER NOT NULL  -- received by the server, its clock
);

-- What was not understood, so that a mapping can be mended later.
CREATE TABLE leftovers (
	message INTEGER PRIMARY KEY,
	raw BLOB,
	problems TEXT NOT NULL      -- JSON array of {where, reason}
);

-- One kind of reading of one subject: what a search walks along. The unit is part of the kind, since some measures have another
-- LOINC code in another unit, or none.
-- kind: 0 reading, 1 reading whose unit is not known, 2 part of a device (MDS, VMD, channel), which has no reading and is not found.
CREATE TABLE series (
	id INTEGER PRIMARY KEY,
	subject INTEGER NOT NULL,
	mdc INTEGER NOT NULL,       -- 0: not a code of that system
	ucum TEXT NOT NULL,
	code_system TEXT NOT NULL,  -- as sent
	code TEXT NOT NULL,         -- as sent
	kind INTEGER NOT NULL,
	UNIQUE (subject, mdc, ucum, code_system, code, kind)
);

-- What readings of one channel of one device share.
CREATE TABLE forms (
	id INTEGER PRIMARY KEY,
	hash BLOB NOT NULL UNIQUE,
	type TEXT NOT NULL,
	code_name TEXT NOT NULL,
	unit TEXT NOT NULL,
	sub_id TEXT NOT NULL,
	limits TEXT NOT NULL,
	device TEXT NOT NULL,
	status TEXT NOT NULL,
	flags TEXT NOT NULL
);

-- One reading. (message, idx) is its key for ever.
CREATE TABLE observations (
	message INTEGER NOT NULL,
	idx INTEGER NOT NULL,
	series INTEGER NOT NULL,
	form INTEGER NOT NULL,
	at INTEGER NOT NULL,        -- device time, or when the gateway received it if that is unreadable
	value TEXT NOT NULL,        -- as sent
	time TEXT,                  -- device time as sent; NULL: messages.time
	marks INTEGER NOT NULL,
	PRIMARY KEY (message, idx)
) WITHOUT ROWID;
CREATE INDEX observations_series ON observations (series, at, message, idx);

-- Running totals, since counting rows takes as long as there are rows; and how far the journal is in this database. The journal has
-- a cursor of its own, which does not go back when the database is restored.
CREATE TABLE records_totals (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	batches INTEGER NOT NULL,
	messages INTEGER NOT NULL,
	observations INTEGER NOT NULL,
	parts INTEGER NOT NULL,     -- rows of observations that are parts of devices, not counted as observations
	seq INTEGER NOT NULL        -- last journal entry that is settled here
);
INSERT INTO records_totals (one, batches, messages, observations, parts, seq) VALUES (1, 0, 0, 0, 0, 0);
