-- The bed that a gateway's configuration binds a device to, where it does: empty otherwise.
ALTER TABLE forms ADD COLUMN bed TEXT NOT NULL DEFAULT '';
ALTER TABLE channels ADD COLUMN bed TEXT NOT NULL DEFAULT '';

-- Messages that name no patient and whose readings are all of a bed that is known. They are not among the anonymous ones.
ALTER TABLE source_stations ADD COLUMN bedded INTEGER NOT NULL DEFAULT 0;
ALTER TABLE source_stations ADD COLUMN bedded_at INTEGER NOT NULL DEFAULT 0;
