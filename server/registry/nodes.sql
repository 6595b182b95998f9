-- Who calls it proves nothing about the gateway: an ingest node's word is that the gateway's certificate was shown to it. What a stolen login
-- can do with it is to end sessions, and the gateways come back. There is a row for each gateway that is registered at most.
CREATE FUNCTION bump_session(of_gateway TEXT) RETURNS BIGINT LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	newest BIGINT;
BEGIN
	IF of_gateway IS NULL OR octet_length(of_gateway) NOT BETWEEN 1 AND 63 THEN
		RAISE EXCEPTION 'gateway id: expected 1 to 63 bytes' USING ERRCODE = '22023';
	END IF;
	INSERT INTO public.sessions AS s (gateway, generation)
		SELECT g.id, (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT FROM public.gateways g WHERE g.id = of_gateway
		ON CONFLICT (gateway) DO UPDATE SET generation = greatest(s.generation + 1, excluded.generation)
		RETURNING s.generation INTO newest;
	IF newest IS NULL THEN
		RAISE EXCEPTION 'gateway is not registered' USING ERRCODE = '22023';
	END IF;
	RETURN newest;
END $$;
REVOKE EXECUTE ON FUNCTION bump_session(TEXT) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bump_session(TEXT) TO wardlink_ingest;

-- What admission asks, under the names that it asks by. What it reads only because an operator's view needs it is blank: where a gateway
-- stands, who cut it off and why, its endorsement keys.
CREATE VIEW ingest_view.gateways AS
	SELECT id, ''::TEXT AS site, ''::TEXT AS ward, profile, state, not_before, not_after, added FROM public.gateways;
CREATE VIEW ingest_view.gateway_wards AS SELECT ''::TEXT AS gateway, 0::BIGINT AS since, ''::TEXT AS ward WHERE FALSE;
CREATE VIEW ingest_view.gateway_eks AS SELECT ''::BYTEA AS ek, ''::TEXT AS gateway WHERE FALSE;
CREATE VIEW ingest_view.gateway_keys AS SELECT spki, gateway FROM public.gateway_keys;
CREATE VIEW ingest_view.gateway_certificates AS SELECT serial, spki, not_after, added FROM public.gateway_certificates;
CREATE VIEW ingest_view.revocations AS SELECT gateway, at, ''::TEXT AS actor, ''::TEXT AS reason, ''::TEXT AS serials FROM public.revocations;
CREATE VIEW ingest_view.gateway_holds AS SELECT gateway, at, ''::TEXT AS actor, ''::TEXT AS reason FROM public.gateway_holds;
CREATE VIEW ingest_view.retired_keys AS SELECT spki, gateway, not_after FROM public.retired_keys;
CREATE VIEW ingest_view.registry_state AS SELECT revision FROM public.registry_state;
CREATE VIEW ingest_view.sessions AS SELECT gateway, generation FROM public.sessions;
GRANT SELECT ON ingest_view.gateways, ingest_view.gateway_wards, ingest_view.gateway_eks, ingest_view.gateway_keys, ingest_view.gateway_certificates,
	ingest_view.revocations, ingest_view.gateway_holds, ingest_view.retired_keys, ingest_view.registry_state, ingest_view.sessions TO wardlink_ingest;

-- A login that need not make anything cannot fill a disk with it.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
DO $$ BEGIN
	EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END $$;
