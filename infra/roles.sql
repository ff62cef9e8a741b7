-- The roles by which pgvigil and pgBackRest work on an operated cluster; neither is a superuser.
-- PostgreSQL 15 to 18. Running it again changes nothing.
--
--   psql -X -v ON_ERROR_STOP=1 -f infra/roles.sql postgres
--
-- Run it as superuser in the database that the cluster's dsn in the fleet file names and to which
-- pgBackRest connects (pg1-database), `postgres` in both by default: rights on functions are kept per
-- database. Passwords are not set here: use \password, and the password or service file of the client.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pgvigil') THEN
        CREATE ROLE pgvigil LOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pgbackrest') THEN
        CREATE ROLE pgbackrest LOGIN;
    END IF;
END
$$;

-- Both must be able to enter where somebody has taken CONNECT from PUBLIC.
DO $$
BEGIN
    EXECUTE pg_catalog.format(
        'GRANT CONNECT ON DATABASE %I TO pgvigil, pgbackrest', pg_catalog.current_database()
    );
END
$$;

-- pgvigil: reads settings, statistics, replication slots and the archiver's status directory; ends the
-- current WAL segment and marks restore points, so that a proof can wait for a segment of its own.
-- What it may change in a database comes from that database's owner:
--   GRANT orders_owner TO pgvigil;   -- to roll partitions of, or backfill, tables of orders_owner
-- A database with backfills or partitions to roll needs infra/target.sql as well.
GRANT pg_monitor TO pgvigil;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO pgvigil;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO pgvigil;

-- pgBackRest: pg1-user=pgbackrest. It reads settings such as data_directory, and takes backups.
GRANT pg_read_all_settings TO pgbackrest;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO pgbackrest;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_stop(boolean) TO pgbackrest;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO pgbackrest;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO pgbackrest;

-- Restore drills compare the content of every table, so pgvigil must read every row, and with that right it
-- can read the password verifiers in pg_authid as well: guard its login like theirs. Leave this section out
-- where no drill may: its report then names each table as not proven. Run it in every database that is
-- drilled, besides the one above, for schema and function are kept per database; and in template1, which is
-- drilled as well, and from which databases made later have them.
GRANT pg_read_all_data TO pgvigil;
ALTER ROLE pgvigil BYPASSRLS;

-- A drill fixes the compared point in one of three ways. With drill.standby it holds that standby's replay
-- for a moment:
GRANT EXECUTE ON FUNCTION pg_catalog.pg_wal_replay_pause() TO pgvigil;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_wal_replay_resume() TO pgvigil;
-- With wal_level = logical it makes a temporary slot. That right also lets a role copy the whole cluster:
--   ALTER ROLE pgvigil REPLICATION;
-- Else it locks all tables against writers for some milliseconds (drill.fence). PostgreSQL 15 asks for the
-- right to write before it lets anyone take such a lock, so a function takes it instead. It can lock, and
-- nothing else; the bounds are those of the calling session.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace AS namespace
                 JOIN pg_catalog.pg_roles AS owner ON owner.oid = namespace.nspowner
                WHERE namespace.nspname = 'pgvigil_drill' AND NOT owner.rolsuper) THEN
        RAISE 'schema pgvigil_drill belongs to a role that is no superuser'
            USING HINT = 'Look who made it and why, drop it, and run this again.';
    END IF;
END
$$;
CREATE SCHEMA IF NOT EXISTS pgvigil_drill;
CREATE OR REPLACE FUNCTION pgvigil_drill.fence(relations oid[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names constant text := (
        SELECT pg_catalog.string_agg(
                   pg_catalog.format('ONLY %I.%I', namespace.nspname, class.relname), ', ' ORDER BY asked.place
               )
          FROM pg_catalog.unnest(relations) WITH ORDINALITY AS asked (oid, place)
          JOIN pg_catalog.pg_class AS class ON class.oid = asked.oid
          JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
    );
BEGIN
    IF pg_catalog.current_setting('statement_timeout') = '0'
        OR pg_catalog.current_setting('idle_in_transaction_session_timeout') = '0' THEN
        RAISE 'a fence needs statement_timeout and idle_in_transaction_session_timeout';
    END IF;
    EXECUTE 'LOCK TABLE ' || names || ' IN SHARE MODE';
END
$$;
REVOKE ALL ON SCHEMA pgvigil_drill FROM PUBLIC;
REVOKE ALL ON FUNCTION pgvigil_drill.fence(oid[]) FROM PUBLIC;
GRANT USAGE ON SCHEMA pgvigil_drill TO pgvigil;
GRANT EXECUTE ON FUNCTION pgvigil_drill.fence(oid[]) TO pgvigil;
