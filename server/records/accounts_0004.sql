-- What is lost of each stream, as its gateway's reports say and as far as it did not turn up: the memory that its event was written.
CREATE TABLE account_losses (
	stream INTEGER PRIMARY KEY,
	lost INTEGER NOT NULL,      -- batches
	upper INTEGER NOT NULL,     -- 1: at most so many
	first INTEGER NOT NULL,     -- lowest and greatest number of them
	last INTEGER NOT NULL,
	noticed INTEGER NOT NULL    -- when it last grew, by the server's clock
);
CREATE INDEX account_losses_noticed ON account_losses (noticed);
