-- Why a gateway that is suspended or decommissioned may not speak. Its state stands in gateways.
CREATE TABLE gateway_holds (
	gateway TEXT NOT NULL PRIMARY KEY REFERENCES gateways (id),
	at INTEGER NOT NULL,
	actor TEXT NOT NULL,
	reason TEXT NOT NULL
) WITHOUT ROWID;

-- Endorsement keys of boards that were replaced. None of them is ever entered again, under whatever id.
CREATE TABLE retired_eks (
	ek BLOB NOT NULL PRIMARY KEY CHECK (length(ek) = 32),
	gateway TEXT NOT NULL REFERENCES gateways (id),
	at INTEGER NOT NULL,
	actor TEXT NOT NULL,
	reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX retired_eks_gateway ON retired_eks (gateway);

-- Device keys of boards that were replaced: they open no session any more. What they signed stays verifiable in gateway_keys.
CREATE TABLE retired_keys (
	spki BLOB NOT NULL PRIMARY KEY REFERENCES gateway_keys (spki),
	gateway TEXT NOT NULL,
	not_after INTEGER NOT NULL -- of its last certificate
) WITHOUT ROWID;
CREATE INDEX retired_keys_not_after ON retired_keys (not_after);

-- The attestation key that a TPM showed last. Another one under the same endorsement key means that the TPM was cleared.
CREATE TABLE attested_aks (
	ek BLOB NOT NULL PRIMARY KEY CHECK (length(ek) = 32),
	ak BLOB NOT NULL, -- its TPM name
	at INTEGER NOT NULL
) WITHOUT ROWID;
