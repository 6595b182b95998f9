-- The certificates of operators, so that their ends can be seen coming. What an operator may do is in the certificate alone.
CREATE TABLE operators (
	serial TEXT NOT NULL PRIMARY KEY,
	name TEXT NOT NULL,
	not_before INTEGER NOT NULL,
	not_after INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX operators_name ON operators (name, not_after);
