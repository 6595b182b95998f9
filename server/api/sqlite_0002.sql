-- Every signed configuration of a gateway (site 0) or of a site (1). The newest version is the one that is wanted; versions only grow.
CREATE TABLE config_versions (
	site INTEGER NOT NULL CHECK (site IN (0, 1)),
	target TEXT NOT NULL,
	version INTEGER NOT NULL,
	settings TEXT NOT NULL, -- what an operator set, JSON
	digest BLOB NOT NULL CHECK (length(digest) = 32), -- of all that the document says but version and time
	document BLOB NOT NULL,
	issued INTEGER NOT NULL,
	actor TEXT NOT NULL,
	PRIMARY KEY (site, target, version)
) WITHOUT ROWID;
INSERT INTO config_versions (site, target, version, settings, digest, document, issued, actor)
	SELECT 0, gateway, version, '{}', settings, document, issued, 'server' FROM configurations;
DROP TABLE configurations;
