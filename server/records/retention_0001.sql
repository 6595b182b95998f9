-- Batches that could not be opened: what room their frames take, and where a frame is that found none.

-- Frames kept in batch_frames, by gateway; the triggers below are its only writers.
CREATE TABLE frames_kept (
	gateway TEXT NOT NULL PRIMARY KEY,
	frames INTEGER NOT NULL,
	bytes INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO frames_kept (gateway, frames, bytes)
	SELECT s.gateway, COUNT(*), SUM(length(f.frame)) FROM batch_frames f JOIN streams s ON s.id = f.stream GROUP BY s.gateway;
CREATE TRIGGER frames_kept_insert AFTER INSERT ON batch_frames BEGIN
	INSERT INTO frames_kept (gateway, frames, bytes) SELECT gateway, 1, length(NEW.frame) FROM streams WHERE id = NEW.stream
		ON CONFLICT (gateway) DO UPDATE SET frames = frames + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER frames_kept_update AFTER UPDATE OF frame ON batch_frames BEGIN
	UPDATE frames_kept SET bytes = bytes + length(NEW.frame) - length(OLD.frame) WHERE gateway = (SELECT gateway FROM streams WHERE id = NEW.stream);
END;
CREATE TRIGGER frames_kept_delete AFTER DELETE ON batch_frames BEGIN
	UPDATE frames_kept SET frames = frames - 1, bytes = bytes - length(OLD.frame) WHERE gateway = (SELECT gateway FROM streams WHERE id = OLD.stream);
END;

-- Dead batches whose gateway had no room left: their frames are in the journal only, as long as it keeps them.
CREATE TABLE frames_unkept (
	stream INTEGER NOT NULL,
	number INTEGER NOT NULL,
	bytes INTEGER NOT NULL,
	PRIMARY KEY (stream, number)
) WITHOUT ROWID;

-- What an operator asked to be opened again, so that its outcome can be shown. The last few are kept.
CREATE TABLE reopenings (
	id INTEGER PRIMARY KEY AUTOINCREMENT,
	asked INTEGER NOT NULL,     -- server's clock
	actor TEXT NOT NULL,
	no_room INTEGER NOT NULL,   -- batches left dead, since their gateway's room is full
	gone INTEGER NOT NULL       -- batches whose frame the journal no longer has
);
CREATE TABLE reopened (
	reopening INTEGER NOT NULL,
	stream INTEGER NOT NULL,
	number INTEGER NOT NULL,
	PRIMARY KEY (reopening, stream, number)
) WITHOUT ROWID;
