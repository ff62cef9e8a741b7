-- pin: all that could render or filter the same row differently on another server or for another role,
-- and that nothing runs functions of its owner as our role: no check of a table, whose database may say so,
-- and, where the server can, no view
SELECT set_config('client_encoding', CASE current_setting('server_encoding') WHEN 'SQL_ASCII' THEN 'LATIN1'
                                          ELSE current_setting('server_encoding') END, false),
       set_config('datestyle', 'ISO, YMD', false),
       set_config('intervalstyle', 'postgres', false),
       set_config('extra_float_digits', '3', false),
       set_config('bytea_output', 'hex', false),
       set_config('xmlbinary', 'base64', false),
       set_config('xmloption', 'content', false),
       set_config('lc_monetary', 'C', false),
       set_config('quote_all_identifiers', 'off', false),
       set_config('row_security', 'off', false),
       set_config('jit', 'off', false),
       set_config('max_parallel_workers_per_gather', '0', false),
       set_config('enable_seqscan', 'off', false),
       set_config('constraint_exclusion', 'off', false),
       CASE WHEN current_setting('restrict_nonsystem_relation_kind', true) IS NOT NULL
            THEN set_config('restrict_nonsystem_relation_kind', 'view, foreign-table', false) END

-- tables: every relation with rows of its own, and what may stand against hashing it; sizes are bytes.
-- Those below 16384 are the server's own, whichever schema they are in; users' tables can be in any.
-- A type without a binary form makes all that contain it, in whatever depth, be hashed as text.
WITH RECURSIVE part (whole, part) AS (
    SELECT oid, typbasetype FROM pg_type WHERE typbasetype <> 0
    UNION ALL
    SELECT oid, typelem FROM pg_type WHERE typelem <> 0
    UNION ALL
    SELECT rngtypid, rngsubtype FROM pg_range
    UNION ALL
    SELECT rngmultitypid, rngtypid FROM pg_range
    UNION ALL
    SELECT type.oid, attribute.atttypid
      FROM pg_type AS type JOIN pg_attribute AS attribute ON attribute.attrelid = type.typrelid
     WHERE attribute.attnum > 0 AND NOT attribute.attisdropped
), textual (oid) AS (
    SELECT oid FROM pg_type WHERE typsend = 0 AND typtype <> 'p'
    UNION
    SELECT part.whole FROM part JOIN textual ON textual.oid = part.part
), locked (oid) AS (  -- to ask for their size waits until they are not
    SELECT relation FROM pg_locks
     WHERE %(skip_locked)s AND locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT class.oid::bigint AS oid,
       namespace.nspname AS schema_name,
       class.relname AS name,
       class.relkind::text AS kind,
       class.relpersistence::text AS persistence,
       class.relfilenode::bigint AS filenode,
       own.is_locked,
       CASE WHEN NOT own.is_locked
            THEN pg_relation_size(class.oid) / current_setting('block_size')::int END AS blocks,
       CASE WHEN NOT own.is_locked THEN pg_table_size(class.oid) END AS bytes,
       class.oid = 'pg_largeobject'::regclass AS has_large_objects,
       class.relkind = 'm' AND NOT class.relispopulated AS is_unpopulated,
       has_schema_privilege(namespace.oid, 'USAGE') AND has_table_privilege(class.oid, 'SELECT') AS is_readable,
       coalesce(row_security_active(class.oid), false) AS is_filtered,
       EXISTS (SELECT FROM textual WHERE textual.oid = class.reltype) AS is_textual,
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = class.oid AND attgenerated <> '') AS is_generated,
       (SELECT coalesce(md5(string_agg(concat_ws(',', attnum, atttypid, atttypmod, attisdropped), ';' ORDER BY attnum)), '')
          FROM pg_attribute WHERE attrelid = class.oid AND attnum > 0) AS columns
  FROM pg_class AS class
  JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
 CROSS JOIN LATERAL (
    SELECT class.oid IN (SELECT oid FROM locked) OR class.reltoastrelid IN (SELECT oid FROM locked) AS is_locked
 ) AS own
 WHERE class.relkind IN ('r', 'm', 'f')
   AND (class.oid >= 16384 OR class.oid = 'pg_largeobject'::regclass)
 ORDER BY namespace.nspname, class.relname

-- strangers: of these tables, those whose indexes, statistics or partition key compute something in which a
-- function, an operator or a type has a part that belongs to no superuser, and one such. To plan a statement
-- computes what is constant in them, as whoever asks (RelationGetIndexExpressions in relcache.c): what the owner
-- of a function makes of it runs as our role. The CHECK of a domain is computed as well, and a cast is met where
-- a function of the server is inlined, of which no dependency tells; so the types of all columns count, and what
-- these are made of.
WITH RECURSIVE computed (relation, classid, objid) AS (
    SELECT indrelid, 'pg_class'::regclass, indexrelid
      FROM pg_index WHERE (indexprs IS NOT NULL OR indpred IS NOT NULL) AND indrelid = ANY (%(oids)s::oid[])
     UNION ALL
    SELECT partrelid, 'pg_class'::regclass, partrelid
      FROM pg_partitioned_table WHERE partexprs IS NOT NULL AND partrelid = ANY (%(oids)s::oid[])
     UNION ALL
    SELECT stxrelid, 'pg_statistic_ext'::regclass, oid
      FROM pg_statistic_ext WHERE stxexprs IS NOT NULL AND stxrelid = ANY (%(oids)s::oid[])
), named (relation, classid, objid) AS (
    SELECT relation, refclassid, refobjid FROM computed JOIN pg_depend USING (classid, objid)
), typed (relation, type) AS (
    (SELECT relation, objid FROM named WHERE classid = 'pg_type'::regclass
      UNION
     SELECT relation, atttypid FROM computed JOIN pg_attribute ON attrelid = relation AND attnum > 0)
     UNION
    SELECT relation, part.type
      FROM typed
     CROSS JOIN LATERAL (
        SELECT unnest(ARRAY[typbasetype, typelem]) FROM pg_type WHERE oid = typed.type
         UNION ALL
        SELECT rngsubtype FROM pg_range WHERE rngtypid = typed.type
         UNION ALL
        SELECT rngtypid FROM pg_range WHERE rngmultitypid = typed.type
         UNION ALL
        SELECT atttypid FROM pg_type JOIN pg_attribute ON attrelid = typrelid AND attnum > 0
         WHERE pg_type.oid = typed.type
     ) AS part (type)
     WHERE typed.type >= 16384
), owned (relation, classid, objid, owner) AS (
    SELECT relation, classid, objid, proowner FROM named JOIN pg_proc ON oid = objid
     WHERE classid = 'pg_proc'::regclass
     UNION ALL
    SELECT relation, 'pg_proc'::regclass, pg_proc.oid, proowner
      FROM named JOIN pg_operator ON pg_operator.oid = objid JOIN pg_proc ON pg_proc.oid = oprcode
     WHERE classid = 'pg_operator'::regclass
     UNION ALL
    SELECT relation, 'pg_proc'::regclass, pg_proc.oid, proowner
      FROM typed
      JOIN pg_constraint ON contypid = type
      JOIN pg_depend ON classid = 'pg_constraint'::regclass AND objid = pg_constraint.oid
                    AND refclassid = 'pg_proc'::regclass
      JOIN pg_proc ON pg_proc.oid = refobjid
     UNION ALL
    SELECT relation, 'pg_type'::regclass, type, typowner FROM typed JOIN pg_type ON oid = type
)
SELECT relation::bigint AS oid, min(pg_describe_object(classid, objid, 0)) AS stranger
  FROM owned JOIN pg_roles ON pg_roles.oid = owner
 WHERE NOT rolsuper
 GROUP BY relation

-- columns: what the columns of these tables are now, outside of any snapshot
SELECT class.oid::bigint AS oid,
       (SELECT coalesce(md5(string_agg(concat_ws(',', attnum, atttypid, atttypmod, attisdropped), ';' ORDER BY attnum)), '')
          FROM pg_attribute WHERE attrelid = class.oid AND attnum > 0) AS columns
  FROM pg_class AS class
 WHERE class.oid = ANY (%(oids)s::oid[])

-- types: a fingerprint of all labels of enums and all attributes of composite types
SELECT md5(concat(
           (SELECT string_agg(concat_ws(',', oid, enumlabel), ';' ORDER BY oid) FROM pg_enum),
           (SELECT string_agg(concat_ws(',', attrelid, attnum, atttypid, attisdropped), ';' ORDER BY attrelid, attnum)
              FROM pg_attribute JOIN pg_class AS class ON class.oid = attrelid
             WHERE class.relkind = 'c')
       )) AS types

-- server: what decides which marks can be had here; spare are the connections that nobody has
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true)::int, 0)
           - (SELECT sum(numbackends) FROM pg_stat_database)::int AS spare,
       pg_is_in_recovery() AS in_recovery,
       current_database() AS database,
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database_oid,
       current_user AS role,
       current_setting('wal_level') AS wal_level,
       (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user) AS may_replicate,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_id,
       (SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout') AS deadlock_ms

-- timeline: on which timeline this server writes, or, in recovery, last restarted
SELECT CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS timeline

-- export: the snapshot of this transaction, for other sessions to read under
SELECT pg_export_snapshot() AS snapshot, clock_timestamp() AS at, pg_current_snapshot()::text AS visible

-- visible: which transactions a snapshot taken now calls finished
SELECT pg_current_snapshot()::text AS visible

-- fence_helper: whether the function of infra/roles.sql is here, ours to call, and nobody else's to change
SELECT EXISTS (
    SELECT FROM pg_proc AS function
      JOIN pg_roles AS owner ON owner.oid = function.proowner
     WHERE function.oid = to_regprocedure('pgvigil_drill.fence(oid[])')
       AND function.prosecdef AND owner.rolsuper
       AND has_schema_privilege(function.pronamespace, 'USAGE')
       AND has_function_privilege(function.oid, 'EXECUTE')
) AS is_here

-- fence_plan: the tables to be locked, those written most first, and whether we may lock them ourselves
SELECT class.oid::bigint AS oid,
       namespace.nspname AS schema_name,
       class.relname AS name,
       has_table_privilege(class.oid, 'UPDATE, DELETE, TRUNCATE') AS may_lock
  FROM pg_class AS class
  JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
 WHERE class.relkind = 'r'
   AND class.relpersistence = 'p'
   AND (class.oid >= 16384 OR class.oid = 'pg_largeobject'::regclass)
 ORDER BY pg_stat_get_tuples_inserted(class.oid) + pg_stat_get_tuples_updated(class.oid)
              + pg_stat_get_tuples_deleted(class.oid) DESC,
          class.oid

-- fence_names: what these tables are called now; those that are gone are called nothing
SELECT class.oid::bigint AS oid, namespace.nspname AS schema_name, class.relname AS name
  FROM pg_class AS class
  JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
 WHERE class.oid = ANY (%(oids)s::oid[])

-- unheld: those of these tables that are there, and that this session has not locked against writers
SELECT class.oid::regclass::text AS relation
  FROM pg_class AS class
 WHERE class.oid = ANY (%(oids)s::oid[])
   AND class.oid NOT IN (SELECT relation FROM pg_locks
                          WHERE pid = pg_backend_pid() AND locktype = 'relation' AND mode = 'ShareLock' AND granted)

-- lock_room: how many locks the server can hold, and how many it holds
SELECT current_setting('max_locks_per_transaction')::bigint
           * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int) AS room,
       (SELECT count(*) FROM pg_locks WHERE NOT fastpath) AS used

-- fence: lock these tables, in this order, against writers
SELECT pgvigil_drill.fence(%(oids)s::oid[])

-- fenced: snapshot and restore point while the tables are locked; reach is how many transactions, from the
-- snapshot's oldest on, had begun to write when the point was made. In this order: age() keeps what it saw first.
SELECT pg_export_snapshot() AS snapshot,
       clock_timestamp() AS at,
       pg_create_restore_point(%(name)s)::text AS lsn,
       age(pg_snapshot_xmin(pg_current_snapshot())::xid) AS reach

-- reach: the same, where the restore point was made by another session
SELECT age(pg_snapshot_xmin(pg_current_snapshot())::xid) AS reach

-- moved: what no fence can hold and a transaction changed that this snapshot does not show, and that may have
-- committed before the restore point. Each REFRESH renews the view's row in pg_class; lo_unlink lets go of
-- pg_largeobject before it commits, and deletes the object's row. Of a row that is still visible here, xmax is
-- such a transaction, unless that was rolled back, or began after the point, or had ended before the snapshot.
WITH changed AS (
    SELECT oid, xmax FROM pg_class WHERE relkind = 'm' AND xmax <> '0'
    UNION ALL
    SELECT 'pg_largeobject'::regclass, xmax FROM pg_largeobject_metadata WHERE xmax <> '0'
), placed AS (
    SELECT oid, pg_snapshot_xmin(snapshot)::text::bigint AS oldest,
           age(pg_snapshot_xmin(snapshot)::xid)::bigint - age(xmax) AS place
      FROM changed, pg_current_snapshot() AS snapshot
)
SELECT DISTINCT oid::bigint AS oid
  FROM placed
 WHERE CASE WHEN place >= 0 AND place < %(reach)s
            THEN pg_xact_status((oldest + place)::text::xid8) <> 'aborted' END

-- holders: who holds a lock on these tables that a fence must wait for, and for how long by now
SELECT lock.relation::bigint AS oid,
       lock.relation::regclass::text AS relation,
       lock.pid,
       lock.mode,
       coalesce(activity.application_name, '') AS application,
       coalesce(activity.backend_type, 'prepared transaction') AS backend,
       coalesce(extract(epoch FROM clock_timestamp() - coalesce(activity.xact_start, prepared.prepared)), 0)::float8 AS age,
       coalesce(activity.state, prepared.gid) AS state,
       left(regexp_replace(coalesce(activity.query, ''), '\s+', ' ', 'g'), 120) AS query
  FROM pg_locks AS lock
  LEFT JOIN pg_stat_activity AS activity USING (pid)
  LEFT JOIN pg_locks AS own  -- what leads from a prepared transaction, which has no process, to its name
    ON lock.pid IS NULL AND own.pid IS NULL AND own.locktype = 'transactionid'
   AND own.virtualtransaction = lock.virtualtransaction
  LEFT JOIN pg_prepared_xacts AS prepared ON prepared.transaction = own.transactionid
 WHERE lock.locktype = 'relation'
   AND lock.database = %(database)s
   AND lock.relation = ANY (%(oids)s::oid[])
   AND lock.granted
   AND lock.pid IS DISTINCT FROM pg_backend_pid()
   AND lock.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                     'AccessExclusiveLock')
 ORDER BY age DESC

-- awaited: the table for which a session waits, and whether who has it waits for that session in turn
SELECT relation::bigint AS oid,
       EXISTS (SELECT FROM unnest(pg_blocking_pids(%(pid)s)) AS blocker (pid)
                WHERE %(pid)s = ANY (pg_blocking_pids(blocker.pid))) AS is_mutual
  FROM pg_locks
 WHERE pid = %(pid)s AND locktype = 'relation' AND NOT granted

-- replay: whether, and where, this standby replays
SELECT pg_is_in_recovery() AS in_recovery,
       CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END AS state,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()::text END AS lsn

-- pause: hold the replay until the marker's lock says that the snapshot was taken, two seconds at most.
-- It runs inside the server to its end, so the replay goes on also when nobody is left to say so.
DO $$
DECLARE
    bound constant timestamptz := clock_timestamp() + interval '2 seconds';
BEGIN
    PERFORM pg_wal_replay_pause();
    WHILE clock_timestamp() < bound
        AND NOT EXISTS (SELECT FROM pg_locks
                         WHERE locktype = 'advisory' AND granted AND database = {database}
                           AND classid = {key} AND objid = 1)
    LOOP
        PERFORM pg_sleep(0.002);
    END LOOP;
    PERFORM pg_wal_replay_resume();
EXCEPTION WHEN query_canceled OR others THEN
    PERFORM pg_wal_replay_resume();
    RAISE;
END
$$

-- release_pause: tell the session that holds the replay that it may go on
SELECT pg_advisory_lock(%(key)s, 1)
