-- Texts that are too long for the key of an index: PostgreSQL takes no entry above 2.7 KB. What they belong to has a reference in their place.
CREATE TABLE long_texts (
	ref TEXT NOT NULL PRIMARY KEY,
	text TEXT NOT NULL
) WITHOUT ROWID;
