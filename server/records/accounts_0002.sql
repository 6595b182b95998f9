-- What became of each gateway's and each source's data, counted as it passes, since what is disposed of is still to be counted. Times are
-- Unix milliseconds by the server's clock, of receipt by the server; 0: never.

CREATE TABLE lane_stations (
	gateway TEXT NOT NULL,
	lane INTEGER NOT NULL,
	journaled INTEGER NOT NULL,    -- batches, each number once
	journaled_at INTEGER NOT NULL,
	stored INTEGER NOT NULL,       -- of them opened, with all they hold
	stored_at INTEGER NOT NULL,
	PRIMARY KEY (gateway, lane)
) WITHOUT ROWID;
INSERT INTO lane_stations SELECT s.gateway, s.lane, COUNT(*), MAX(b.received), SUM(b.state = 2), COALESCE(MAX(CASE WHEN b.state = 2 THEN b.received END), 0)
	FROM batches b JOIN streams s ON s.id = b.stream GROUP BY s.gateway, s.lane;

-- identified, anonymous: messages with and without a patient. readings: observations and waveform chunks; last: the newest message with any.
CREATE TABLE source_stations (
	source INTEGER PRIMARY KEY,
	messages INTEGER NOT NULL,
	message_at INTEGER NOT NULL,
	identified INTEGER NOT NULL,
	identified_at INTEGER NOT NULL,
	anonymous INTEGER NOT NULL,
	anonymous_at INTEGER NOT NULL,
	readings INTEGER NOT NULL,
	reading_at INTEGER NOT NULL,
	last INTEGER NOT NULL
);
INSERT INTO source_stations SELECT source, COUNT(*), MAX(journaled), SUM(subject <> 0), COALESCE(MAX(CASE WHEN subject <> 0 THEN journaled END), 0),
	SUM(subject = 0), COALESCE(MAX(CASE WHEN subject = 0 THEN journaled END), 0), 0, 0, 0 FROM messages GROUP BY source;
