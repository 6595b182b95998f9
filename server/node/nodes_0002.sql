-- The term of a node's newest certificate, for who asks which identities end when. 0: it has shown none since this is kept.
ALTER TABLE nodes ADD COLUMN not_before INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN not_after INTEGER NOT NULL DEFAULT 0;
