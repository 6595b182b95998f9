-- Who may ask the server for something by a certificate of its own: operators, and service accounts of the hospital's systems (kind
-- access). Times are Unix milliseconds; 0 is never.
CREATE TABLE identities (
	kind TEXT NOT NULL CHECK (kind IN ('access', 'operator')),
	name TEXT NOT NULL,
	owner TEXT NOT NULL,      -- the person or team that answers for it
	contact TEXT NOT NULL,
	role TEXT NOT NULL,       -- of an operator
	scope TEXT NOT NULL,      -- of a service account, JSON; see Scope
	state TEXT NOT NULL CHECK (state IN ('active', 'suspended', 'revoked')),
	changed INTEGER NOT NULL, -- when the state was set, by whom and why
	changed_by TEXT NOT NULL,
	reason TEXT NOT NULL,
	created INTEGER NOT NULL,
	creator TEXT NOT NULL,
	used INTEGER NOT NULL,    -- when it last did anything but renew itself, to the minute
	used_for TEXT NOT NULL,
	PRIMARY KEY (kind, name)
) WITHOUT ROWID;

-- Their certificates. What is not in here counts for nothing, whoever signed it.
CREATE TABLE identity_certificates (
	serial TEXT NOT NULL PRIMARY KEY,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	spki BLOB CHECK (spki IS NULL OR length(spki) = 32), -- NULL: of an operator from before this table
	not_before INTEGER NOT NULL,
	not_after INTEGER NOT NULL,
	ends INTEGER NOT NULL,    -- when it counts no more: not_after, or earlier after a rotation
	added INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX identity_certificates_name ON identity_certificates (kind, name, not_after);

-- What there was keeps what it could do: service accounts read everything, operators do everything.
INSERT INTO identities (kind, name, owner, contact, role, scope, state, changed, changed_by, reason, created, creator, used, used_for)
	SELECT 'access', name, '', '', '', '{"all":true,"operations":["read","search","waveforms"]}', 'active', 0, '', '', MIN(added), '', 0, '' FROM access GROUP BY name;
INSERT INTO identities (kind, name, owner, contact, role, scope, state, changed, changed_by, reason, created, creator, used, used_for)
	SELECT 'operator', name, '', '', 'admin', '{}', 'active', 0, '', '', MIN(not_before), '', 0, '' FROM operators GROUP BY name;
INSERT INTO identity_certificates (serial, kind, name, spki, not_before, not_after, ends, added)
	SELECT serial, 'access', name, spki, added, not_after, not_after, added FROM access;
INSERT INTO identity_certificates (serial, kind, name, spki, not_before, not_after, ends, added)
	SELECT serial, 'operator', name, NULL, not_before, not_after, not_after, not_before FROM operators;
DROP TABLE access;
DROP TABLE operators;
