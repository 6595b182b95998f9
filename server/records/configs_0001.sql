-- Which steps gateways say that the hospital's configurations took: each version of a gateway's own document (site '') or of a site's takes
-- each step once. A row is the memory that its event was written.
CREATE TABLE config_steps (
	gateway TEXT NOT NULL,
	site TEXT NOT NULL,
	version INTEGER NOT NULL,
	step INTEGER NOT NULL,
	reason TEXT NOT NULL,
	received INTEGER NOT NULL,
	PRIMARY KEY (gateway, site, version, step)
) WITHOUT ROWID;
-- What each gateway's newest report says is in force: its own document's version, and its site's.
CREATE TABLE config_in_force (
	gateway TEXT NOT NULL PRIMARY KEY,
	own INTEGER NOT NULL,
	site TEXT NOT NULL,
	site_version INTEGER NOT NULL,
	received INTEGER NOT NULL
) WITHOUT ROWID;
