-- Where pgvigil keeps its work state, in each database whose partitions it rolls or whose rows it changes: schema
-- pgvigil, so that the state commits with the work. PostgreSQL 15 to 18. Running it again changes nothing.
--
--   psql -X -v ON_ERROR_STOP=1 -f infra/target.sql orders
--
-- Run it as superuser, or as an owner of the database, after infra/roles.sql. The role pgvigil may then write
-- these tables and create nothing. The audit log may live in the same schema: no name is used by both.

DO $$
BEGIN
    IF pg_catalog.to_regrole('pgvigil_owner') IS NULL THEN
        CREATE ROLE pgvigil_owner NOLOGIN;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    NULL; -- then the schema belongs to who runs this
END
$$;

DO $$
DECLARE
    -- The audit log's owner where there is one, so that its own installation can go on owning the schema.
    owner constant name := CASE
        WHEN pg_catalog.to_regrole('pgvigil_owner') IS NULL THEN current_user
        WHEN pg_catalog.pg_has_role('pgvigil_owner', 'MEMBER') THEN 'pgvigil_owner'
        ELSE current_user
    END;
BEGIN
    IF pg_catalog.to_regnamespace('pgvigil') IS NULL THEN
        EXECUTE pg_catalog.format('CREATE SCHEMA pgvigil AUTHORIZATION %I', owner);
    END IF;
END
$$;

-- --- partitions ---

-- One row per partition on its way out or back in, gone when it has arrived.
CREATE TABLE IF NOT EXISTS pgvigil.departure (
    id uuid PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('leaving', 'fenced', 'archived', 'returning', 'returned')),
    relation bigint NOT NULL,
    schema text NOT NULL,
    name text NOT NULL,
    parent bigint NOT NULL,
    bound text NOT NULL,
    condition text NOT NULL,
    since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    detached_at timestamptz,
    fence jsonb,
    manifest text,
    manifest_sha256 text, -- of its bytes, noted before they are written
    leaves jsonb NOT NULL DEFAULT '{}'
);
ALTER TABLE pgvigil.departure ADD COLUMN IF NOT EXISTS leaves jsonb NOT NULL DEFAULT '{}';
ALTER TABLE pgvigil.departure ADD COLUMN IF NOT EXISTS manifest_sha256 text;

-- What keeps writers off a table whose copy is being made. It is not replaced: another row version of it would
-- mean that every fence was opened.
DO $$
BEGIN
    IF pg_catalog.to_regprocedure('pgvigil.refuse_write()') IS NULL THEN
        CREATE FUNCTION pgvigil.refuse_write() RETURNS trigger LANGUAGE plpgsql
            SET search_path = pg_catalog AS $function$
        BEGIN
            RAISE EXCEPTION 'table % is being archived and takes no writes', TG_RELID::regclass
                USING ERRCODE = 'read_only_sql_transaction',
                      HINT = 'its partition was detached; pgvigil restore-partition brings it back';
        END
        $function$;
    END IF;
END
$$;

-- --- backfills ---

-- One row per backfill. `fence` grows with every runner that takes over: who has an older one can commit no
-- more. `wanted` and `overrides` are how people steer.
CREATE TABLE IF NOT EXISTS pgvigil.backfill (
    name text PRIMARY KEY,
    relation oid NOT NULL,
    fingerprint text NOT NULL,
    definition jsonb NOT NULL,
    state text NOT NULL DEFAULT 'walking' CHECK (state IN ('walking', 'done')),
    pass integer NOT NULL DEFAULT 0,
    fence bigint NOT NULL DEFAULT 0,
    runner text,
    runner_pid integer,
    runner_started timestamptz,
    leased_until timestamptz,
    wanted text NOT NULL DEFAULT 'run' CHECK (wanted IN ('run', 'pause', 'cancel')),
    wanted_by text,
    wanted_at timestamptz,
    overrides jsonb NOT NULL DEFAULT '{}',
    rows_total bigint NOT NULL DEFAULT 0,
    progress jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    ended_at timestamptz
) WITH (fillfactor = 50);

-- Half-open ranges, (after, through], of the key by which one table or partition is walked; NULL is before the
-- first row.
-- Rows up to and including `reached` are done; of those after it, up to and including `ahead`, some are. Sweeps
-- are for rows that others held locked.
CREATE TABLE IF NOT EXISTS pgvigil.backfill_range (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    backfill text NOT NULL REFERENCES pgvigil.backfill ON DELETE CASCADE,
    pass integer NOT NULL,
    relation oid NOT NULL,
    key text[] NOT NULL DEFAULT '{}',
    after text[],
    through text[] NOT NULL,
    reached text[],
    ahead text[],
    is_sweep boolean NOT NULL DEFAULT false,
    is_done boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 0,
    not_before timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    fence bigint NOT NULL,
    worker integer,
    rows_seen bigint NOT NULL DEFAULT 0,
    rows_done bigint NOT NULL DEFAULT 0,
    batches bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
ALTER TABLE pgvigil.backfill_range ADD COLUMN IF NOT EXISTS key text[] NOT NULL DEFAULT '{}';
ALTER TABLE pgvigil.backfill_range ADD COLUMN IF NOT EXISTS ahead text[];
CREATE INDEX IF NOT EXISTS backfill_range_open ON pgvigil.backfill_range (backfill, id) WHERE NOT is_done;

-- Rows that cannot be changed, with the reason.
CREATE TABLE IF NOT EXISTS pgvigil.backfill_quarantine (
    backfill text NOT NULL REFERENCES pgvigil.backfill ON DELETE CASCADE,
    relation oid NOT NULL,
    key text[] NOT NULL,
    sqlstate text NOT NULL,
    message text NOT NULL,
    at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (backfill, relation, key)
);

-- What changed rows held before, where the policy asks for it. It outlives its backfill, until it expires.
CREATE TABLE IF NOT EXISTS pgvigil.backfill_image (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    backfill text NOT NULL,
    relation oid NOT NULL,
    key_columns text[] NOT NULL,
    key text[] NOT NULL,
    columns text[] NOT NULL,
    before text[] NOT NULL,
    after text[] NOT NULL,
    expires_at timestamptz NOT NULL
);
ALTER TABLE pgvigil.backfill_image ADD COLUMN IF NOT EXISTS key_columns text[] NOT NULL DEFAULT '{}';
CREATE INDEX IF NOT EXISTS backfill_image_backfill ON pgvigil.backfill_image (backfill, id);

-- --- whose they are ---

DO $$
DECLARE
    ours text;
    owner constant name := (
        SELECT pg_catalog.pg_get_userbyid(nspowner) FROM pg_catalog.pg_namespace WHERE nspname = 'pgvigil'
    );
    -- To give an owner again what he has would be another row version of the function, and open every fence.
    is_foreign constant boolean := (
        SELECT proowner <> owner::regrole FROM pg_catalog.pg_proc
         WHERE oid = 'pgvigil.refuse_write()'::regprocedure
    );
BEGIN
    FOREACH ours IN ARRAY
        ARRAY['departure', 'backfill', 'backfill_range', 'backfill_quarantine', 'backfill_image']
    LOOP
        IF pg_catalog.pg_has_role(owner, 'MEMBER') THEN
            EXECUTE pg_catalog.format('ALTER TABLE pgvigil.%I OWNER TO %I', ours, owner);
        END IF;
        EXECUTE pg_catalog.format('REVOKE ALL ON pgvigil.%I FROM PUBLIC', ours);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON pgvigil.%I TO pgvigil', ours);
    END LOOP;
    IF is_foreign AND pg_catalog.pg_has_role(owner, 'MEMBER') THEN
        EXECUTE pg_catalog.format('ALTER FUNCTION pgvigil.refuse_write() OWNER TO %I', owner);
    END IF;
END
$$;
GRANT USAGE ON SCHEMA pgvigil TO pgvigil;
