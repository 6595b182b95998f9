-- The readings of a message in one row, or in few: they share patient, device and, nearly always, the instant; so what orders and finds them is
-- written once for all of them. How the rows came from observations, which held one reading each, says upgrade.go.

-- Which series the cells of a row are of, in their order. A subject has few.
CREATE TABLE layouts (
	id INTEGER PRIMARY KEY,
	subject INTEGER NOT NULL,   -- of all these series
	width INTEGER NOT NULL,     -- how many series
	hash BLOB NOT NULL UNIQUE,  -- SHA-256 of series
	series BLOB NOT NULL        -- their ids, each as a varint
);
CREATE INDEX layouts_subject ON layouts (subject, width);

-- Readings of one message that stand at one instant. (message, idx) is the key of a reading for ever; idx is in its cell.
CREATE TABLE readings (
	id INTEGER PRIMARY KEY,     -- message * 1048576 + part: parts count from 0 within a message
	layout INTEGER NOT NULL,
	at INTEGER NOT NULL,        -- device time, or when the gateway received it if that is unreadable
	unread INTEGER NOT NULL,    -- 1: the device time of all of them is unreadable
	count INTEGER NOT NULL,     -- readings, parts of devices among them
	cells BLOB NOT NULL         -- see cells.go
);
CREATE INDEX readings_time ON readings (layout, at, id);
