-- How far what may be being opened reaches in the journal, where it is beyond seq: see intake.go.
ALTER TABLE records_totals ADD COLUMN opening INTEGER NOT NULL DEFAULT 0;
