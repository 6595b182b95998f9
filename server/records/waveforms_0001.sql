-- Waveforms, in chunks as the devices sent them, beside the observations of the same messages. They are the most of all that is kept and
-- the first that goes: a chunk is deleted alone, by id in ranges of journaled, or with its message. Nothing else refers to it. The
-- totals count what was stored, not what is left.

-- What the chunks of one channel of one device share.
CREATE TABLE channels (
	id INTEGER PRIMARY KEY,
	hash BLOB NOT NULL UNIQUE,
	type TEXT NOT NULL,
	code_name TEXT NOT NULL,
	label TEXT NOT NULL,
	unit TEXT NOT NULL,
	sub_id TEXT NOT NULL,
	device TEXT NOT NULL,
	status TEXT NOT NULL,
	flags TEXT NOT NULL,
	period TEXT NOT NULL,       -- milliseconds between two samples; this and the others are exact decimals
	factor TEXT NOT NULL,       -- empty: 1
	origin TEXT NOT NULL,       -- empty: 0
	lower TEXT NOT NULL,        -- empty: not known
	upper TEXT NOT NULL
);

-- One chunk. (message, idx) is its key for ever, and no observation of the message has the same. Its series (a kind of 3, or of 4 where
-- the unit is not known) stands among those of the readings, so that a search walks along both.
CREATE TABLE waveforms (
	id INTEGER PRIMARY KEY,
	message INTEGER NOT NULL,
	idx INTEGER NOT NULL,
	series INTEGER NOT NULL,
	channel INTEGER NOT NULL,
	at INTEGER NOT NULL,        -- of the first sample: device time, or when the gateway received it if that is unreadable
	time TEXT,                  -- device time as sent; NULL: messages.time
	marks INTEGER NOT NULL,
	journaled INTEGER NOT NULL, -- received by the server, its clock: what age counts from
	count INTEGER NOT NULL,     -- samples
	samples BLOB NOT NULL,      -- one byte: 0, tokens (telemetry/WIRE.md, "Waveforms"); 1, tokens deflated
	UNIQUE (message, idx)
);
CREATE INDEX waveforms_series ON waveforms (series, at, message, idx);
CREATE INDEX waveforms_journaled ON waveforms (journaled);

-- A chunk never outlives its message, whoever deletes that.
CREATE TRIGGER waveforms_of_message AFTER DELETE ON messages BEGIN
	DELETE FROM waveforms WHERE message = OLD.id;
END;

CREATE TABLE waveforms_totals (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	chunks INTEGER NOT NULL,
	samples INTEGER NOT NULL
);
INSERT INTO waveforms_totals (one, chunks, samples) VALUES (1, 0, 0);
