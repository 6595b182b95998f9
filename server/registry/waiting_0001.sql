-- What waiting gateways say their serial numbers are. Nobody has proven them.
CREATE TABLE waiting_serials (
	ek BLOB NOT NULL PRIMARY KEY REFERENCES waiting (ek) ON DELETE CASCADE,
	serial TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX waiting_serials_serial ON waiting_serials (serial);

-- The serial numbers by which operators approved gateways: none admits a second TPM.
CREATE TABLE gateway_serials (
	serial TEXT NOT NULL PRIMARY KEY,
	gateway TEXT NOT NULL REFERENCES gateways (id)
) WITHOUT ROWID;
CREATE INDEX gateway_serials_gateway ON gateway_serials (gateway);
