-- Retention by class. A message's class is the lane that it came by; its age counts from the server's receipt.

-- aged: what the age of a batch counts from when that is not received, which a clock far behind wrote; 0: received.
ALTER TABLE batches ADD COLUMN aged INTEGER NOT NULL DEFAULT 0;

-- lane: as telemetry.Lane. aged: journaled, or later when the clock was far behind.
ALTER TABLE messages ADD COLUMN lane INTEGER NOT NULL DEFAULT 0;
ALTER TABLE messages ADD COLUMN aged INTEGER NOT NULL DEFAULT 0;
UPDATE messages SET aged = journaled, lane = COALESCE((SELECT lane FROM streams WHERE id = messages.stream), 1);
-- What is over, by class and subject; and whether a subject or an origin has anything left.
CREATE INDEX messages_age ON messages (lane, subject, aged);
CREATE INDEX messages_origin ON messages (origin);

-- Numbers of batches that are settled and whose rows are gone, so that one that is published again is known for ever.
CREATE TABLE batch_ranges (
	stream INTEGER NOT NULL,
	first INTEGER NOT NULL,
	last INTEGER NOT NULL,
	PRIMARY KEY (stream, first)
) WITHOUT ROWID;

-- What was disposed of and is in no event yet: written with each deletion, taken away with the event.
CREATE TABLE retention_runs (
	class TEXT NOT NULL PRIMARY KEY,
	cutoff INTEGER NOT NULL,
	count INTEGER NOT NULL,
	first INTEGER NOT NULL,     -- server's clock at receipt, of the oldest and the latest
	last INTEGER NOT NULL,
	detail TEXT NOT NULL        -- JSON object: further counts
) WITHOUT ROWID;

CREATE TABLE retention_classes (
	class TEXT NOT NULL PRIMARY KEY,
	oldest INTEGER NOT NULL,    -- of what is kept; 0: nothing is
	checked INTEGER NOT NULL,   -- end of the last run
	disposal INTEGER NOT NULL,  -- when anything was last disposed of; 0: never
	disposed INTEGER NOT NULL   -- in all
) WITHOUT ROWID;

-- The server's clock as disposal has seen it; see clock.go.
CREATE TABLE retention_clock (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	clock INTEGER NOT NULL,     -- when it was last looked at; 0: never
	floor INTEGER NOT NULL,     -- latest time that it showed while it was believed
	drift INTEGER NOT NULL,     -- sum of its jumps since steady, in milliseconds
	steady INTEGER NOT NULL,    -- since when it has not jumped
	ahead INTEGER NOT NULL      -- 1: it may have been far ahead, and times of receipt with it
);
INSERT INTO retention_clock (one, clock, floor, drift, steady, ahead) VALUES (1, 0, 0, 0, 0, 0);
