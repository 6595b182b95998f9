-- What the CA keeps of enrolments that are under way: minutes to an hour each. What was issued stands in the registry and in the log. Times
-- are Unix milliseconds; ends is when a row means nothing any more, and may be pruned.

-- One row: the key of nonces, and the generation of those that are given out now.
CREATE TABLE ca_state (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	nonce_key BLOB NOT NULL,     -- 32 bytes
	generation INTEGER NOT NULL,
	advanced INTEGER NOT NULL    -- when the generation began
);

-- Nonces that were used, of this generation and the one before. Those that were only given out are nowhere.
CREATE TABLE ca_nonces (
	generation INTEGER NOT NULL,
	salt BLOB NOT NULL,          -- 16 bytes
	PRIMARY KEY (generation, salt)
) WITHOUT ROWID;

-- Challenges of the attestation CA that wait for their answer.
CREATE TABLE ca_pending (
	secret BLOB NOT NULL PRIMARY KEY, -- SHA-256 of the secret that answers it
	ends INTEGER NOT NULL,
	verified BLOB NOT NULL            -- what was found of the TPM; at most 8 KB
) WITHOUT ROWID;
CREATE INDEX ca_pending_ends ON ca_pending (ends);

CREATE TABLE ca_accounts (
	id TEXT NOT NULL PRIMARY KEY,
	key_id TEXT NOT NULL UNIQUE,      -- RFC 7638 thumbprint of key
	key BLOB NOT NULL,                -- JWK; at most 2 KB
	contact TEXT NOT NULL,            -- JSON; at most 1 KB
	status TEXT NOT NULL,
	location TEXT NOT NULL,           -- of its URL, without the id
	provisioner TEXT NOT NULL,        -- id
	provisioner_name TEXT NOT NULL,
	ends INTEGER NOT NULL             -- unless it has an order
) WITHOUT ROWID;
CREATE INDEX ca_accounts_ends ON ca_accounts (ends);

-- An order, its one authorization, that one's one challenge and the certificate are one row, so that they are never apart. They share the id.
-- state: 0 pending; 1 attested; 2 claimed, by whoever makes the certificate; 3 issued; 4 refused.
CREATE TABLE ca_orders (
	id TEXT NOT NULL PRIMARY KEY,
	account TEXT NOT NULL,
	provisioner TEXT NOT NULL,
	gateway TEXT NOT NULL,            -- the permanent identifier
	token TEXT NOT NULL,
	not_before INTEGER NOT NULL,      -- of the certificate that is asked for
	not_after INTEGER NOT NULL,
	ends INTEGER NOT NULL,
	state INTEGER NOT NULL,
	error BLOB,                       -- of state 4: an ACME problem, JSON; at most 2 KB
	validated INTEGER NOT NULL,       -- from state 1 on: when it was attested
	ek BLOB,                          -- SHA-256 of the endorsement key behind the attestation
	spki BLOB,                        -- SHA-256 of the attested key, PKIX DER
	fingerprint TEXT NOT NULL,        -- smallstep's, of the same key
	claim TEXT NOT NULL,              -- of state 2: by which request
	chain BLOB                        -- of state 3: the certificates, DER, one behind the other
) WITHOUT ROWID;
CREATE INDEX ca_orders_ends ON ca_orders (ends);
CREATE INDEX ca_orders_account ON ca_orders (account);
