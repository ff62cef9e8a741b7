-- source: the cluster that is drilled, as its drill needs to know it; paths are those of its own host.
-- The largest database comes last: its mark can be the target itself
SELECT version() AS version,
       (SELECT rolname FROM pg_roles WHERE oid = 10) AS superuser,
       current_user AS role,
       current_setting('data_directory') AS data_directory,
       ARRAY(SELECT pg_tablespace_location(oid) FROM pg_tablespace
              WHERE pg_tablespace_location(oid) <> '' ORDER BY oid) AS tablespaces,
       ARRAY(SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2
              ORDER BY pg_database_size(oid), datname) AS databases,
       ARRAY(SELECT datname FROM pg_database
              WHERE NOT datallowconn AND datconnlimit <> -2 AND datname <> 'template0' ORDER BY datname) AS closed,
       ARRAY(SELECT datname FROM pg_database WHERE datconnlimit = -2 ORDER BY datname) AS half_dropped,
       (SELECT jsonb_object_agg(datname, oid::bigint) FROM pg_database) AS oids

-- beat: a transaction that is looked for in the copy by its id; the message makes it write WAL
SELECT pg_current_xact_id()::text AS xid,
       pg_logical_emit_message(true, 'pgvigil', %(mark)s)::text AS message

-- here: where WAL is written now, and the time
SELECT pg_current_wal_insert_lsn()::text AS lsn, clock_timestamp() AS at

-- point: a named place in WAL
SELECT pg_create_restore_point(%(name)s)::text AS lsn

-- end_segment: the segment that now holds the end of the WAL, then the switch away from it
SELECT pg_walfile_name(pg_current_wal_lsn() - 1) AS segment, pg_switch_wal()::text AS lsn

-- committed: whether a transaction is there; one that this server has not seen yet is not
SELECT CASE WHEN %(xid)s::xid8 < pg_snapshot_xmax(pg_current_snapshot())
            THEN coalesce(pg_xact_status(%(xid)s::xid8) = 'committed', false)
            ELSE false END AS committed
