-- The account of batch numbers: what was journaled, what the gateways' own reports say of the rest, and what nobody accounts for. It
-- stands by itself, since batches are disposed of and their numbers must not look missing then. Times are Unix milliseconds by the
-- server's clock.

-- Numbers that were journaled, as runs with a hole between any two.
CREATE TABLE account_runs (
	stream INTEGER NOT NULL,
	first INTEGER NOT NULL,
	last INTEGER NOT NULL,
	since INTEGER NOT NULL,     -- earliest receipt of one of them
	PRIMARY KEY (stream, first)
) WITHOUT ROWID;
INSERT INTO account_runs (stream, first, last, since)
	SELECT stream, MIN(number), MAX(number), MIN(received) FROM
		(SELECT stream, number, received, number - ROW_NUMBER() OVER (PARTITION BY stream ORDER BY number) AS run FROM batches)
	GROUP BY stream, run;

-- What reports say of numbers. kind: 0 held by the gateway, 1 void, 2 lost.
CREATE TABLE account_sets (
	stream INTEGER NOT NULL,
	kind INTEGER NOT NULL,
	first INTEGER NOT NULL,
	last INTEGER NOT NULL,
	upper INTEGER NOT NULL,     -- 1: an upper bound, which names other numbers too
	PRIMARY KEY (stream, kind, first)
) WITHOUT ROWID;

-- assigned: numbers below are used up, as far as reports say. covered: of numbers below, the gateway has none but those it holds.
CREATE TABLE account_streams (
	stream INTEGER PRIMARY KEY,
	assigned INTEGER NOT NULL,
	covered INTEGER NOT NULL
);

-- Numbers that are neither journaled nor accounted for by a report.
CREATE TABLE account_gaps (
	stream INTEGER NOT NULL,
	first INTEGER NOT NULL,
	last INTEGER NOT NULL,
	since INTEGER NOT NULL,     -- when it was first noticed
	firm INTEGER NOT NULL,      -- 1: the gateway's own report says that it does not have them
	PRIMARY KEY (stream, first)
) WITHOUT ROWID;

-- The newest report of each gateway.
CREATE TABLE gateway_reports (
	gateway TEXT NOT NULL PRIMARY KEY,
	epoch BLOB NOT NULL,
	number INTEGER NOT NULL,
	boot BLOB NOT NULL,
	mono INTEGER NOT NULL,      -- made, milliseconds since that boot
	received INTEGER NOT NULL,
	report BLOB NOT NULL        -- as telemetry.Encode makes it
) WITHOUT ROWID;

-- What is known of each source, also of those that say nothing since their agent's last start.
CREATE TABLE gateway_sources (
	gateway TEXT NOT NULL,
	source TEXT NOT NULL,
	reported INTEGER NOT NULL,  -- receipt of the last report that names it
	heard INTEGER NOT NULL,     -- last message, gateway's clock; 0: none
	usual INTEGER NOT NULL,     -- milliseconds from message to message; 0: not known
	PRIMARY KEY (gateway, source)
) WITHOUT ROWID;
CREATE INDEX gateway_sources_name ON gateway_sources (source);
