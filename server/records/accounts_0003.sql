-- How many batches of each stream are stored, counted as they are, since their rows are disposed of. What was stored before is what was
-- journaled and is in no other state.
CREATE TABLE account_stored (
	stream INTEGER PRIMARY KEY,
	stored INTEGER NOT NULL
);
INSERT INTO account_stored (stream, stored)
	SELECT r.stream, SUM(r.last - r.first + 1) - (SELECT COUNT(*) FROM batches b WHERE b.stream = r.stream AND b.state <> 2 AND b.state IN (0, 1, 3))
	FROM account_runs r GROUP BY r.stream;
