-- How gateways booted, and what that is held to. Measurements are JSON (package boot), at most 128 KB each.

-- gateway '' is every gateway that has no policy of its own. pcrs: a bit for each that counts.
CREATE TABLE boot_policies (
	gateway TEXT NOT NULL PRIMARY KEY,
	mode TEXT NOT NULL CHECK (mode IN ('off', 'learn', 'allow')),
	pcrs INTEGER NOT NULL,
	learn INTEGER NOT NULL,     -- attestations in a row with the same values, until they are locked
	at INTEGER NOT NULL,
	actor TEXT NOT NULL
) WITHOUT ROWID;

-- What operators allow, release by release.
CREATE TABLE boot_releases (
	name TEXT NOT NULL PRIMARY KEY,
	measurement TEXT NOT NULL,
	source TEXT NOT NULL,       -- the gateway that it was taken of; empty: a file
	at INTEGER NOT NULL,
	actor TEXT NOT NULL
) WITHOUT ROWID;

-- What a gateway's boots were when it was learned.
CREATE TABLE boot_baselines (
	gateway TEXT NOT NULL PRIMARY KEY REFERENCES gateways (id),
	measurement TEXT NOT NULL,
	seen INTEGER NOT NULL,      -- attestations in a row
	locked INTEGER NOT NULL     -- when; 0: not yet
) WITHOUT ROWID;

-- The newest attestation of each gateway.
CREATE TABLE boot_measurements (
	gateway TEXT NOT NULL PRIMARY KEY REFERENCES gateways (id),
	at INTEGER NOT NULL,
	measurement TEXT NOT NULL,
	state TEXT NOT NULL,        -- as boot.State
	matched TEXT NOT NULL       -- the release; empty: none, or the gateway's own baseline
) WITHOUT ROWID;

-- The gateways that booted something unknown, until an operator readmits them. A fact beside the gateway's state, which a suspension hides.
CREATE TABLE boot_quarantines (
	gateway TEXT NOT NULL PRIMARY KEY REFERENCES gateways (id),
	since INTEGER NOT NULL,
	mismatch TEXT NOT NULL      -- JSON of the newest, as boot.Mismatch
) WITHOUT ROWID;
