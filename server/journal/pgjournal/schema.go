package pgjournal

import "wardlink/server/sqldb"

const (
	commitBytes   = 4 << 20 // heads and blobs of one group, but for a single entry
	commitEntries = 4096
)

// Migrations are the journal's tables and functions. POSTGRES.md describes them.
func Migrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "journal", Version: 1, Postgres: schema}}
}

const schema = `
CREATE TABLE journal_state (
	base BIGINT NOT NULL CHECK (base >= 0),                         -- numbers begin behind it
	start BIGINT NOT NULL CHECK (start BETWEEN 0 AND 4294967295)    -- the last that an opening was given
);
INSERT INTO journal_state (base, start) VALUES (0, 0);
CREATE TABLE journal_lock ();
CREATE TABLE journal_parts (
	first BIGINT NOT NULL PRIMARY KEY,
	begun BIGINT NOT NULL,                                          -- Unix seconds; the part before it is finished then
	before BIGINT NOT NULL                                          -- bytes of heads and blobs of the part before it
);
CREATE TABLE journal_groups (
	first BIGINT NOT NULL PRIMARY KEY CHECK (first > 0),
	last BIGINT NOT NULL CHECK (last >= first),
	size BIGINT NOT NULL,                                           -- bytes of heads and blobs
	part BIGINT NOT NULL,                                           -- first number of its part
	begun BIGINT NOT NULL,                                          -- of its part
	filled BIGINT NOT NULL,                                         -- bytes of heads and blobs of its part, up to its own
	login TEXT COLLATE "C" NOT NULL                                 -- who appended it
);
CREATE TABLE journal_pieces (
	first BIGINT NOT NULL,                                          -- of its group
	piece INTEGER NOT NULL,
	bytes BYTEA NOT NULL,
	PRIMARY KEY (first, piece)
);
ALTER TABLE journal_pieces ALTER COLUMN bytes SET STORAGE PLAIN;        -- a piece fills a page, and ciphertext does not compress
CREATE TABLE journal_cursors (
	consumer TEXT COLLATE "C" NOT NULL PRIMARY KEY,
	seq BIGINT NOT NULL
);
CREATE TABLE journal_nodes (
	login TEXT COLLATE "C" NOT NULL PRIMARY KEY,
	node BIGINT NOT NULL UNIQUE CHECK (node BETWEEN 1 AND 4294967295),
	seen BIGINT NOT NULL                                            -- Unix seconds: opened, or tried after a failure
);
CREATE TABLE journal_trial (room BYTEA NOT NULL);
ALTER TABLE journal_trial ALTER COLUMN room SET STORAGE EXTERNAL;

CREATE FUNCTION journal_append(entries BYTEA, count INTEGER, size INTEGER) RETURNS BIGINT
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	top BIGINT; part BIGINT; begun BIGINT; filled BIGINT;
	now BIGINT := floor(extract(epoch FROM clock_timestamp()));
BEGIN
	IF count NOT BETWEEN 1 AND 4096 OR size NOT BETWEEN count AND 4194304 OR octet_length(entries) <> 8 + 25 * count + size THEN
		RAISE EXCEPTION 'not a group of entries' USING ERRCODE = '22023';
	END IF;
	IF current_setting('synchronous_commit') = 'off' OR current_setting('fsync') <> 'on' THEN
		RAISE EXCEPTION 'fsync or synchronous_commit is off' USING ERRCODE = 'F0000';
	END IF;
	LOCK TABLE public.journal_lock IN EXCLUSIVE MODE;
	SELECT g.last, g.part, g.begun, g.filled INTO top, part, begun, filled FROM public.journal_groups g ORDER BY g.first DESC LIMIT 1;
	IF top IS NULL THEN
		SELECT s.base INTO top FROM public.journal_state s;
	END IF;
	IF part IS NULL OR filled >= 67108864 OR now - begun >= 86400 THEN
		INSERT INTO public.journal_parts (first, begun, before) VALUES (top + 1, now, coalesce(filled, 0));
		part := top + 1; begun := now; filled := 0;
	END IF;
	INSERT INTO public.journal_groups (first, last, size, part, begun, filled, login)
		VALUES (top + 1, top + count, size, part, begun, filled + size, session_user);
	INSERT INTO public.journal_pieces (first, piece, bytes)
		SELECT top + 1, i, substring(entries FROM i * 8096 + 1 FOR 8096) FROM generate_series(0, (octet_length(entries) - 1) / 8096) i;
	RETURN top + 1;
END $$;

CREATE FUNCTION journal_open(OUT node_number BIGINT, OUT start_number BIGINT)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	now BIGINT := floor(extract(epoch FROM clock_timestamp()));
BEGIN
	UPDATE public.journal_state s SET start = greatest(s.start + 1, now) RETURNING s.start INTO start_number;
	SELECT n.node INTO node_number FROM public.journal_nodes n WHERE n.login = session_user;
	IF node_number IS NULL THEN
		SELECT coalesce(max(n.node), 0) + 1 INTO node_number FROM public.journal_nodes n;
		INSERT INTO public.journal_nodes (login, node, seen) VALUES (session_user, node_number, now);
	ELSE
		UPDATE public.journal_nodes n SET seen = now WHERE n.login = session_user;
	END IF;
END $$;

CREATE FUNCTION journal_try() RETURNS VOID
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	BEGIN
		INSERT INTO public.journal_trial (room) VALUES (convert_to(repeat('x', 262144), 'UTF8'));
		RAISE EXCEPTION 'there is room' USING ERRCODE = 'WL001';
	EXCEPTION WHEN SQLSTATE 'WL001' THEN NULL;
	END;
	UPDATE public.journal_nodes n SET seen = floor(extract(epoch FROM clock_timestamp())) WHERE n.login = session_user;
END $$;

REVOKE ALL ON FUNCTION journal_append(BYTEA, INTEGER, INTEGER), journal_open(), journal_try() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION journal_append(BYTEA, INTEGER, INTEGER), journal_open(), journal_try() TO wardlink_ingest;
`
