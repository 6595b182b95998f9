-- Who claims to be whom, and cannot be: a row for each kind, gateway and rival. Bounded: the one not seen for longest makes room.
CREATE TABLE identity_conflicts (
	kind TEXT NOT NULL,
	gateway TEXT NOT NULL REFERENCES gateways (id),
	rival TEXT NOT NULL,     -- another gateway's id, or the fingerprint of a TPM
	peer TEXT NOT NULL,      -- of the newest
	first_seen INTEGER NOT NULL,
	last_seen INTEGER NOT NULL,
	count INTEGER NOT NULL,
	PRIMARY KEY (kind, gateway, rival)
) WITHOUT ROWID;
CREATE INDEX identity_conflicts_last_seen ON identity_conflicts (last_seen);

-- An attestation key lives in one TPM: under endorsement keys of two gateways it shows that one TPM is both.
CREATE INDEX attested_aks_ak ON attested_aks (ak);
