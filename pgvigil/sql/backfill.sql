-- resolve: the table of a policy by its name as SQL writes it, no row for a name that leads nowhere
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
       c.relpersistence::text AS persistence, c.reltuples::float8 AS rows,
       coalesce((SELECT array_agg(a.attname::text) FROM pg_partitioned_table AS p
                   JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = ANY (p.partattrs::int2[])
                  WHERE p.partrelid = c.oid), '{}') AS partition_key
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.oid = to_regclass(%(table)s)

-- columns: what can be written, and what by nobody
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type,
       -- from PostgreSQL 18 on, a NOT NULL may be NOT VALID: older rows may break it
       a.attnotnull AND NOT EXISTS (
           SELECT FROM pg_constraint AS n WHERE n.conrelid = a.attrelid AND n.contype = 'n'
              AND n.conkey = ARRAY[a.attnum] AND NOT n.convalidated) AS not_null,
       a.attgenerated <> '' AS is_generated
  FROM pg_attribute AS a
 WHERE a.attrelid = %(relation)s AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum

-- leaves: the tables that hold the rows: the table itself, or its partitions and heirs
WITH RECURSIVE tree AS (
    SELECT %(relation)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON i.inhparent = tree.oid WHERE NOT i.inhdetachpending
)
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relispartition AS is_partition,
       c.reltuples::float8 AS rows, pg_relation_size(c.oid) AS bytes,
       coalesce((SELECT option_value::int FROM pg_options_to_table(c.reloptions)
                  WHERE option_name = 'fillfactor'), 100) AS fillfactor,
       current_setting('block_size')::int AS block_size
  FROM tree JOIN pg_class AS c USING (oid) JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relkind <> 'p'
 ORDER BY c.oid

-- keys: unique indexes by which each row can be found: whole, valid, of NOT NULL columns, in one direction and in
-- the order of their types, which that of a key WITHOUT OVERLAPS is not
SELECT ic.relname AS index, i.indisprimary AS is_primary, k.columns, k.width
  FROM pg_index AS i
  JOIN pg_class AS ic ON ic.oid = i.indexrelid
  JOIN pg_am AS am ON am.oid = ic.relam AND am.amname = 'btree'
 CROSS JOIN LATERAL (
       SELECT jsonb_agg(jsonb_build_object(
                  'name', a.attname,
                  'type', format_type(a.atttypid, a.atttypmod),
                  'collation', CASE WHEN l.oid <> a.attcollation
                                    THEN jsonb_build_array(ln.nspname, l.collname) END
              ) ORDER BY part.place) AS columns,
              bool_and(a.attnotnull AND NOT EXISTS (
                  SELECT FROM pg_constraint AS n WHERE n.conrelid = a.attrelid AND n.contype = 'n'
                     AND n.conkey = ARRAY[a.attnum] AND NOT n.convalidated)) AS is_not_null,
              count(*) = i.indnkeyatts AS is_plain,
              count(DISTINCT i.indoption[part.place - 1] & 1) = 1 AS is_one_way,
              bool_and(EXISTS (SELECT FROM pg_opclass AS d
                                WHERE d.opcfamily = o.opcfamily AND d.opcdefault)) AS is_usual,
              sum(CASE WHEN a.attlen > 0 THEN a.attlen ELSE 32 END) AS width
         FROM generate_series(1, i.indnkeyatts) AS part (place)
         JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[part.place - 1]
         JOIN pg_opclass AS o ON o.oid = i.indclass[part.place - 1]
         LEFT JOIN pg_collation AS l ON l.oid = i.indcollation[part.place - 1]
         LEFT JOIN pg_namespace AS ln ON ln.oid = l.collnamespace
       ) AS k
 WHERE i.indrelid = %(relation)s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
   AND k.is_not_null AND k.is_plain AND k.is_one_way AND k.is_usual
 ORDER BY i.indisprimary DESC, k.width, ic.relname

-- indexed: which of some columns an index has in it, expressions and predicates included
SELECT DISTINCT a.attname AS column, ic.relname AS index
  FROM pg_index AS i
  JOIN pg_class AS ic ON ic.oid = i.indexrelid
  JOIN pg_am AS am ON am.oid = ic.relam AND am.amname <> 'brin'
  JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attname = ANY (%(columns)s)
 WHERE i.indrelid = %(relation)s
   AND (a.attnum = ANY (i.indkey::int2[]) OR EXISTS (
        SELECT FROM pg_depend AS d
         WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
           AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))
 ORDER BY 1, 2

-- triggers: those of people that an update of some columns, or an insert, fires
SELECT t.tgname AS name, p.oid::regprocedure::text AS function
  FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
 WHERE t.tgrelid = %(relation)s AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
   AND t.tgtype & %(event)s <> 0
   AND (cardinality(t.tgattr::int2[]) = 0 OR EXISTS (
        SELECT FROM pg_attribute AS a
         WHERE a.attrelid = t.tgrelid AND a.attname = ANY (%(columns)s) AND a.attnum = ANY (t.tgattr::int2[])))
 ORDER BY 1

-- installed: whether the tables of infra/target.sql, those of this version, are there and ours to write
SELECT count(*) = 4 AND bool_and(has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                                 AND has_table_privilege(c.oid, 'UPDATE'))
       AND EXISTS (SELECT FROM pg_attribute
                    WHERE attrelid = to_regclass('pgvigil.backfill_range') AND attname = 'ahead') AS is_installed,
       pg_is_in_recovery() AS in_recovery
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = 'pgvigil' AND has_schema_privilege(n.oid, 'USAGE')
   AND c.relname IN ('backfill', 'backfill_range', 'backfill_quarantine', 'backfill_image')

-- changed_so_far: what this session did to a table and has not told yet, heap-only updates apart
SELECT coalesce(sum(n_tup_upd), 0)::bigint AS updated, coalesce(sum(n_tup_hot_upd), 0)::bigint AS hot
  FROM pg_stat_xact_all_tables WHERE relid = %(relation)s

-- read: the state of a backfill
SELECT *, coalesce(leased_until > clock_timestamp(), false)
          AND EXISTS (SELECT FROM pg_stat_activity AS a
                       WHERE a.pid = b.runner_pid AND a.backend_start = b.runner_started) AS is_held,
       (SELECT count(*) FROM pgvigil.backfill_quarantine AS q WHERE q.backfill = b.name) AS quarantined
  FROM pgvigil.backfill AS b WHERE name = %(name)s

-- read_for_update: the same, and nobody else changes it
SELECT *, coalesce(leased_until > clock_timestamp(), false)
          AND EXISTS (SELECT FROM pg_stat_activity AS a
                       WHERE a.pid = b.runner_pid AND a.backend_start = b.runner_started) AS is_held,
       (SELECT count(*) FROM pgvigil.backfill_quarantine AS q WHERE q.backfill = b.name) AS quarantined
  FROM pgvigil.backfill AS b WHERE name = %(name)s FOR UPDATE

-- register: a backfill that was never run, or was forgotten
INSERT INTO pgvigil.backfill (name, relation, fingerprint, definition)
VALUES (%(name)s, %(relation)s, %(fingerprint)s, %(definition)s)
ON CONFLICT (name) DO NOTHING

-- redefine: take another definition for a backfill of which nothing is open
UPDATE pgvigil.backfill
   SET relation = %(relation)s, fingerprint = %(fingerprint)s, definition = %(definition)s
 WHERE name = %(name)s

-- take_over: a new fencing token; batches of an older one that are still at work end before this does
WITH taken AS (
    UPDATE pgvigil.backfill
       SET fence = fence + 1, runner = %(runner)s, runner_pid = pg_backend_pid(),
           runner_started = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()),
           leased_until = clock_timestamp() + %(lease)s
     WHERE name = %(name)s
    RETURNING fence
), ranges AS (
    UPDATE pgvigil.backfill_range SET fence = taken.fence, worker = NULL FROM taken
     WHERE backfill = %(name)s AND NOT is_done
)
SELECT fence FROM taken

-- renew: the sign of life of the runner that holds the token, no row for one that lost it
UPDATE pgvigil.backfill
   SET leased_until = clock_timestamp() + %(lease)s, progress = %(progress)s, runner_pid = pg_backend_pid(),
       runner_started = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
 WHERE name = %(name)s AND fence = %(fence)s
RETURNING wanted, wanted_by, wanted_at, overrides, clock_timestamp() AS now,
          pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS lsn

-- let_go: the runner is done with it
UPDATE pgvigil.backfill SET leased_until = NULL, progress = %(progress)s WHERE name = %(name)s AND fence = %(fence)s

-- begin_pass: a new walk; no row for a runner that lost its token
UPDATE pgvigil.backfill
   SET state = 'walking', pass = pass + 1, rows_total = %(rows)s, ended_at = NULL,
       started_at = CASE WHEN state = 'done' OR pass = 0 THEN clock_timestamp() ELSE started_at END
 WHERE name = %(name)s AND fence = %(fence)s
RETURNING pass

-- forget_ranges: those of earlier passes, all of which are done
DELETE FROM pgvigil.backfill_range WHERE backfill = %(name)s AND pass < %(pass)s

-- add_range: rows to walk over
INSERT INTO pgvigil.backfill_range (backfill, pass, relation, key, after, through, fence)
VALUES (%(name)s, %(pass)s, %(relation)s, %(key)s, %(after)s, %(through)s, %(fence)s)

-- add_sweep: rows that others held locked, to be tried again later
INSERT INTO pgvigil.backfill_range
       (backfill, pass, relation, key, after, through, fence, is_sweep, attempts, not_before)
VALUES (%(name)s, %(pass)s, %(relation)s, %(key)s, %(after)s, %(through)s, %(fence)s, true, %(attempts)s,
        clock_timestamp() + least(%(attempts)s, 20) * interval '250 ms')

-- lease_range: the next range, walks before sweeps, that no worker has: neither another one nor one that left
-- without giving it back; first our own, if a lost connection took the answer to an earlier lease or release
UPDATE pgvigil.backfill_range SET worker = %(worker)s
 WHERE id = (SELECT id FROM pgvigil.backfill_range
              WHERE backfill = %(name)s AND NOT is_done AND fence = %(fence)s
                AND (worker IS NULL OR worker = %(worker)s OR worker >= %(workers)s)
                AND not_before <= clock_timestamp()
              ORDER BY worker IS NOT DISTINCT FROM %(worker)s DESC, is_sweep, id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, pass, relation, is_sweep

-- release_range: a worker that leaves gives back what it has not finished
UPDATE pgvigil.backfill_range SET worker = NULL
 WHERE id = %(id)s AND fence = %(fence)s AND worker = %(worker)s

-- claim: the first statement of a batch: where to go on, if the token still holds, and what people want
SELECT r.key, r.after, r.reached, r.ahead, r.through, r.attempts, r.is_sweep, r.pass, b.wanted, b.overrides,
       to_regclass(%(table)s)::oid AS there,
       (SELECT c.relispartition FROM pg_class AS c WHERE c.oid = r.relation) AS is_partition,
       pg_stat_get_xact_tuples_hot_updated(r.relation) AS hot,
       pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS lsn
  FROM pgvigil.backfill_range AS r JOIN pgvigil.backfill AS b ON b.name = r.backfill
 WHERE r.id = %(id)s AND r.fence = %(fence)s AND NOT r.is_done
   FOR UPDATE OF r

-- advance: the last statement of a batch: the cursor commits with the rows
UPDATE pgvigil.backfill_range
   SET reached = coalesce(%(to)s::text[], reached), is_done = coalesce(through = %(to)s::text[], false),
       ahead = CASE WHEN ahead = %(to)s::text[] THEN NULL ELSE coalesce(ahead, %(ahead)s::text[]) END,
       rows_seen = rows_seen + %(seen)s, rows_done = rows_done + %(done)s, batches = batches + 1
 WHERE id = %(id)s AND fence = %(fence)s
RETURNING is_done, pg_stat_get_xact_tuples_hot_updated(relation) AS hot,
          pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS lsn

-- abandon: the rest of a range that cannot be walked any more; the count tells what that leaves
UPDATE pgvigil.backfill_range SET is_done = true WHERE id = %(id)s AND fence = %(fence)s

-- totals: how far the ranges of the current pass are
SELECT coalesce(sum(rows_seen) FILTER (WHERE NOT is_sweep), 0)::bigint AS seen,
       coalesce(sum(rows_done), 0)::bigint AS done, coalesce(sum(batches), 0)::bigint AS batches,
       count(*) FILTER (WHERE NOT is_done AND NOT is_sweep) AS open,
       count(*) FILTER (WHERE NOT is_done AND is_sweep) AS sweeps,
       (SELECT count(*) FROM pgvigil.backfill_quarantine WHERE backfill = %(name)s) AS quarantined
  FROM pgvigil.backfill_range WHERE backfill = %(name)s

-- holes: ranges of the walk that do not begin where the one before them ended, or are not wholly done
SELECT count(*) AS holes
  FROM (SELECT after, through, reached, is_done, is_sweep,
               lag(through) OVER (PARTITION BY relation, is_sweep ORDER BY id) AS before
          FROM pgvigil.backfill_range WHERE backfill = %(name)s AND pass = %(pass)s) AS r
 WHERE NOT is_done OR (NOT is_sweep AND after IS DISTINCT FROM before)

-- finish: the proof was given
UPDATE pgvigil.backfill SET state = 'done', ended_at = clock_timestamp()
 WHERE name = %(name)s AND fence = %(fence)s

-- quarantine: a row that cannot be changed
INSERT INTO pgvigil.backfill_quarantine (backfill, relation, key, sqlstate, message)
VALUES (%(name)s, %(relation)s, %(key)s, %(sqlstate)s, %(message)s)
ON CONFLICT (backfill, relation, key)
DO UPDATE SET sqlstate = excluded.sqlstate, message = excluded.message, at = excluded.at

-- quarantined: the rows that could not be changed
SELECT relation, key, sqlstate, message, at FROM pgvigil.backfill_quarantine
 WHERE backfill = %(name)s ORDER BY relation, key

-- discharge: a row that is good again
DELETE FROM pgvigil.backfill_quarantine
 WHERE backfill = %(name)s AND relation = %(relation)s AND key = %(key)s::text[]

-- steer: what people want of it from now on
UPDATE pgvigil.backfill
   SET wanted = coalesce(%(wanted)s, wanted), wanted_by = %(by)s, wanted_at = clock_timestamp(),
       overrides = CASE WHEN %(overrides)s::jsonb IS NULL THEN overrides
                        ELSE jsonb_strip_nulls(overrides || %(overrides)s::jsonb) END
 WHERE name = %(name)s

-- forget: drop the state of a backfill that nobody runs; the next run begins anew
DELETE FROM pgvigil.backfill WHERE name = %(name)s

-- standbys: what each has not replayed yet
SELECT coalesce(nullif(application_name, ''), host(client_addr), pid::text) AS name,
       pg_current_wal_lsn() - coalesce(replay_lsn, flush_lsn, sent_lsn) AS bytes,
       coalesce(replay_lsn, flush_lsn, sent_lsn) - '0/0'::pg_lsn AS lsn
  FROM pg_stat_replication WHERE state <> 'backup'

-- slots: the WAL that each holds back, and how far it holds VACUUM back
SELECT slot_name AS name, coalesce(pg_current_wal_lsn() - restart_lsn, 0) AS bytes,
       coalesce(greatest(age(xmin), age(catalog_xmin)), 0) AS xids
  FROM pg_replication_slots WHERE wal_status IS DISTINCT FROM 'lost'

-- archive: how much waits for the archiver, and whether its last try failed
SELECT (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%%.ready') AS ready,
       current_setting('archive_mode') <> 'off'
       AND coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) AS is_failing,
       last_failed_wal
  FROM pg_stat_archiver

-- victims: sessions that wait for a lock of ours
SELECT count(*) AS waiting
  FROM pg_stat_activity AS a
 WHERE a.wait_event_type = 'Lock'
   AND EXISTS (SELECT FROM unnest(pg_blocking_pids(a.pid)) AS blocker
                 JOIN pg_stat_activity AS b ON b.pid = blocker
                WHERE b.application_name = %(application)s)

-- oldest: the transaction that has been open longest and may hold VACUUM back, ours apart
SELECT coalesce(extract(epoch FROM max(age)), 0)::float8 AS seconds
  FROM (SELECT clock_timestamp() - xact_start AS age FROM pg_stat_activity
         WHERE xact_start IS NOT NULL AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
           AND backend_type = 'client backend' AND application_name <> %(application)s
         UNION ALL
        SELECT clock_timestamp() - prepared FROM pg_prepared_xacts) AS open

-- autovacuum: whether it is at work on one of the tables
SELECT count(*) AS working
  FROM pg_stat_progress_vacuum AS v JOIN pg_stat_activity AS a USING (pid)
 WHERE v.relid = ANY (%(relations)s::oid[]) AND a.backend_type = 'autovacuum worker'

-- connections: the part of them in use
SELECT count(*)::float8 / (current_setting('max_connections')::int
                           - current_setting('superuser_reserved_connections')::int) AS used
  FROM pg_stat_activity WHERE backend_type = 'client backend'

-- constraint: a CHECK by its name
SELECT convalidated AS is_validated FROM pg_constraint
 WHERE conrelid = %(relation)s AND conname = %(constraint)s

-- expire_images: those whose time is over
DELETE FROM pgvigil.backfill_image WHERE expires_at < clock_timestamp()

-- images: how many there are of a backfill
SELECT count(*) AS count, max(expires_at) AS expires_at FROM pgvigil.backfill_image WHERE backfill = %(name)s

-- image_layers: images of one table that hold the same columns by the same key, the newest first
SELECT relation, key_columns, columns, min(id) AS first, count(*) AS images
  FROM (SELECT id, relation, key_columns, columns,
               count(*) FILTER (WHERE is_other) OVER (PARTITION BY relation ORDER BY id) AS layer
          FROM (SELECT *, (key_columns, columns) IS DISTINCT FROM
                          (lag(key_columns) OVER older, lag(columns) OVER older) AS is_other
                  FROM pgvigil.backfill_image WHERE backfill = %(name)s
                WINDOW older AS (PARTITION BY relation ORDER BY id)) AS image) AS image
 GROUP BY relation, layer, key_columns, columns
 ORDER BY first DESC

-- image_nulls: the columns in which some image has no value
SELECT columns[place] AS column, count(*) AS images
  FROM pgvigil.backfill_image, generate_subscripts(before, 1) AS place
 WHERE backfill = %(name)s AND before[place] IS NULL
 GROUP BY 1

-- lsn: where the server writes WAL
SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS lsn
