-- What a gateway's profile grants is asked at its admission.
CREATE VIEW ingest_view.profiles AS SELECT name, lanes, publishes, bytes FROM public.profiles;
GRANT SELECT ON ingest_view.profiles TO wardlink_ingest;
