-- What the hospital's clock showed at readings of a boot's monotonic clock, as the gateway reports it once the hospital has told it the
-- time. Times of that boot, also earlier ones, are repaired from the nearest. Nothing that was stored as the gateway's clock showed it
-- is changed: messages.wall stays.
CREATE TABLE boot_clocks (
	boot INTEGER NOT NULL,        -- boots.id
	slot INTEGER NOT NULL,        -- mono in units of six hours: a boot clock drifts by some seconds a day, and a boot may last for years
	mono INTEGER NOT NULL,        -- milliseconds since the boot
	server INTEGER NOT NULL,      -- then, by the hospital's clock
	uncertainty INTEGER NOT NULL, -- milliseconds
	wall INTEGER NOT NULL,        -- then, by the gateway's clock
	PRIMARY KEY (boot, slot)
) WITHOUT ROWID;

-- Messages with readings that stand at the time of their arrival, by a gateway's clock of which nothing was known yet.
CREATE TABLE times_waiting (
	boot INTEGER NOT NULL,
	message INTEGER NOT NULL,
	PRIMARY KEY (boot, message)
) WITHOUT ROWID;

CREATE TRIGGER times_waiting_of_message AFTER DELETE ON messages BEGIN
	DELETE FROM times_waiting WHERE boot = OLD.boot AND message = OLD.id;
END;
