-- Where roll_partitions and restore_partition keep their state, in each database whose partitions are archived:
-- schema pgvigil, so that it commits with the work. PostgreSQL 15 to 18. Running it again changes nothing.
--
--   psql -X -v ON_ERROR_STOP=1 -f infra/partitions.sql orders
--
-- Run it as superuser, or as an owner of the database, after infra/roles.sql. The role pgvigil may then write
-- this table and create nothing. Backfills and the audit log may live in the same schema.

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
    leaves jsonb NOT NULL DEFAULT '{}'
);
ALTER TABLE pgvigil.departure ADD COLUMN IF NOT EXISTS leaves jsonb NOT NULL DEFAULT '{}';

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

DO $$
DECLARE
    owner constant name := (
        SELECT pg_catalog.pg_get_userbyid(nspowner) FROM pg_catalog.pg_namespace WHERE nspname = 'pgvigil'
    );
    -- To give an owner again what he has would be another row version of the function.
    is_foreign constant boolean := (
        SELECT relowner <> owner::regrole FROM pg_catalog.pg_class WHERE oid = 'pgvigil.departure'::regclass
    );
BEGIN
    IF is_foreign AND pg_catalog.pg_has_role(owner, 'MEMBER') THEN
        EXECUTE pg_catalog.format('ALTER TABLE pgvigil.departure OWNER TO %I', owner);
        EXECUTE pg_catalog.format('ALTER FUNCTION pgvigil.refuse_write() OWNER TO %I', owner);
    END IF;
END
$$;
REVOKE ALL ON pgvigil.departure FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON pgvigil.departure TO pgvigil;
GRANT USAGE ON SCHEMA pgvigil TO pgvigil;
