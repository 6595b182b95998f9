-- Batches that were journaled while their gateway was in quarantine: their readings bear the mark once they are opened.
ALTER TABLE batches ADD COLUMN quarantined INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch_conflicts ADD COLUMN quarantined INTEGER NOT NULL DEFAULT 0;
