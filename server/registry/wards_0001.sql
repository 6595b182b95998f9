-- The wards of each gateway: each holds from its instant until the next one's. since 0 is "from the beginning".
CREATE TABLE gateway_wards (
	gateway TEXT NOT NULL REFERENCES gateways (id),
	since INTEGER NOT NULL,
	ward TEXT NOT NULL,
	entered INTEGER NOT NULL, -- when somebody said so
	actor TEXT NOT NULL,
	PRIMARY KEY (gateway, since)
) WITHOUT ROWID;
INSERT INTO gateway_wards (gateway, since, ward, entered, actor) SELECT id, 0, ward, added, '' FROM gateways;
