-- The newest session of each gateway among all nodes of a cell. A generation is greater than all before of its gateway, also after a restore
-- of an older database: it is at least the milliseconds of the database server's clock.
CREATE TABLE sessions (
	gateway TEXT NOT NULL PRIMARY KEY,
	generation INTEGER NOT NULL
) WITHOUT ROWID;
