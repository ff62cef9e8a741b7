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
-- A database with backfills needs infra/backfill.sql as well.
GRANT pg_monitor TO pgvigil;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO pgvigil;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO pgvigil;

-- pgBackRest: pg1-user=pgbackrest. It reads settings such as data_directory, and takes backups.
GRANT pg_read_all_settings TO pgbackrest;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO pgbackrest;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_stop(boolean) TO pgbackrest;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO pgbackrest;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO pgbackrest;
