-- table: a partitioned table, its key, its owner, and what refers to it
SELECT parent.oid::bigint AS oid, namespace.nspname AS schema, parent.relname AS name,
       parent.relkind = 'p' AS is_partitioned,
       partitioned.partstrat::text AS strategy,
       partitioned.partnatts AS key_columns,
       key.attname AS key,
       CASE WHEN key.atttypid IS NOT NULL THEN format_type(key.atttypid, NULL) END AS key_type,
       nullif(partitioned.partdefid, 0)::bigint AS default_oid,
       pg_get_userbyid(parent.relowner) AS owner,
       pg_has_role(parent.relowner, 'USAGE') AS may_alter,
       clock_timestamp() AS now,
       current_setting('server_version_num')::int AS version_num,
       pg_is_in_recovery() AS in_recovery,
       ARRAY(SELECT conrelid::regclass::text FROM pg_constraint
              WHERE contype = 'f' AND confrelid = parent.oid AND conparentid = 0 ORDER BY 1) AS referenced_by,
       ARRAY(SELECT DISTINCT confrelid::regclass::text FROM pg_constraint
              WHERE contype = 'f' AND conrelid = parent.oid
                AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd')) ORDER BY 1) AS followed
  FROM pg_class AS parent
  JOIN pg_namespace AS namespace ON namespace.oid = parent.relnamespace
  LEFT JOIN pg_partitioned_table AS partitioned ON partitioned.partrelid = parent.oid
  LEFT JOIN pg_attribute AS key
         ON key.attrelid = parent.oid AND key.attnum = partitioned.partattrs[0] AND key.attnum > 0
 WHERE parent.oid = to_regclass(%(table)s)

-- oid: a table by its name
SELECT to_regclass(%(table)s)::oid::bigint AS oid

-- children: its partitions, those that wait for the end of a detach included
SELECT child.oid::bigint AS oid, namespace.nspname AS schema, child.relname AS name,
       child.relkind::text AS kind,
       pg_get_expr(child.relpartbound, child.oid) AS bound,
       pg_get_partition_constraintdef(child.oid) AS condition,
       inherits.inhdetachpending AS is_pending,
       pg_total_relation_size(child.oid) AS size,
       greatest(child.reltuples, 0)::bigint AS rows,
       coalesce(pg_get_partkeydef(child.oid), '') AS partition_by,
       coalesce((SELECT parted.partstrat = 'h' OR NOT EXISTS (
                            SELECT FROM unnest(parted.partattrs::int2[]) AS place
                              LEFT JOIN pg_attribute ON attrelid = parted.partrelid AND attnum = place
                             WHERE place = 0 OR attname = %(key)s)
                    FROM pg_partitioned_table AS parted WHERE parted.partrelid = child.oid), true) AS is_timeless
  FROM pg_inherits AS inherits
  JOIN pg_class AS child ON child.oid = inherits.inhrelid
  JOIN pg_namespace AS namespace ON namespace.oid = child.relnamespace
 WHERE inherits.inhparent = %(oid)s
 ORDER BY child.oid

-- below: everything below these tables, those that wait for the end of a detach included
WITH RECURSIVE tree AS (
    SELECT oid AS root, oid, NULL::oid AS parent, relkind, false AS is_pending, 0 AS depth
      FROM pg_class WHERE oid = ANY (%(oids)s)
     UNION ALL
    SELECT tree.root, child.oid, tree.oid, child.relkind, inherits.inhdetachpending, tree.depth + 1
      FROM tree
      JOIN pg_inherits AS inherits ON inherits.inhparent = tree.oid AND tree.relkind = 'p'
      JOIN pg_class AS child ON child.oid = inherits.inhrelid
)
SELECT tree.root::bigint AS root, class.oid::bigint AS oid, tree.parent::bigint AS parent,
       namespace.nspname AS schema, class.relname AS name,
       pg_get_expr(class.relpartbound, class.oid) AS bound,
       coalesce(pg_get_partkeydef(class.oid), '') AS partition_by,
       coalesce((SELECT parted.partstrat = 'h' OR NOT EXISTS (
                            SELECT FROM unnest(parted.partattrs::int2[]) AS place
                              LEFT JOIN pg_attribute ON attrelid = parted.partrelid AND attnum = place
                             WHERE place = 0 OR attname = %(key)s)
                    FROM pg_partitioned_table AS parted WHERE parted.partrelid = class.oid), true) AS is_timeless,
       tree.relkind::text AS kind, tree.is_pending,
       coalesce(pg_total_relation_size(class.oid), 0) AS size,
       NOT EXISTS (
           SELECT FROM pg_attribute AS ours
             LEFT JOIN pg_attribute AS theirs
                    ON theirs.attrelid = class.oid AND theirs.attnum = ours.attnum
                       AND theirs.attname = ours.attname
            WHERE ours.attrelid = tree.root AND ours.attnum > 0 AND NOT ours.attisdropped
              AND theirs.attrelid IS NULL) AS is_alike
  FROM tree
  JOIN pg_class AS class USING (oid)
  JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
 WHERE tree.depth > 0
 ORDER BY tree.root, tree.depth, class.oid

-- names: the relations and types of a schema, so that a new table, which is both, gets a name that is free
SELECT relname AS name FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE nspname = %(schema)s
 UNION
SELECT typname FROM pg_type JOIN pg_namespace ON pg_namespace.oid = typnamespace
 WHERE nspname = %(schema)s
   AND NOT EXISTS (SELECT FROM pg_type AS element WHERE element.typarray = pg_type.oid)  -- these make way

-- drift: what a partition has otherwise than its table, of that which PostgreSQL does not keep alike
SELECT child.relname AS name,
       array_remove(ARRAY[
           CASE WHEN child.relowner <> parent.relowner THEN 'owner' END,
           CASE WHEN coalesce(child.relacl, acldefault('r', child.relowner)) IS DISTINCT FROM
                     coalesce(parent.relacl, acldefault('r', parent.relowner))
                  OR EXISTS (
               SELECT FROM pg_attribute AS ours JOIN pg_attribute AS theirs
                   ON theirs.attrelid = parent.oid AND theirs.attname = ours.attname
                WHERE ours.attrelid = child.oid AND ours.attnum > 0 AND NOT ours.attisdropped
                  AND ours.attacl IS DISTINCT FROM theirs.attacl) THEN 'grants' END,
           CASE WHEN (child.relrowsecurity, child.relforcerowsecurity)
                     <> (parent.relrowsecurity, parent.relforcerowsecurity) THEN 'row security' END,
           CASE WHEN child.relreplident <> parent.relreplident THEN 'replica identity' END,
           CASE WHEN EXISTS (
               SELECT FROM pg_attribute AS ours JOIN pg_attribute AS theirs
                   ON theirs.attrelid = parent.oid AND theirs.attname = ours.attname
                WHERE ours.attrelid = child.oid AND ours.attnum > 0 AND NOT ours.attisdropped
                  AND ours.attstattarget IS DISTINCT FROM theirs.attstattarget) THEN 'statistics targets' END
       ], NULL) AS differs
  FROM pg_inherits AS inherits
  JOIN pg_class AS child ON child.oid = inherits.inhrelid
  JOIN pg_class AS parent ON parent.oid = inherits.inhparent
 WHERE inherits.inhparent = %(oid)s AND NOT inherits.inhdetachpending AND child.relkind = 'r'

-- followers: foreign keys by which rows of others change or go with those of a partition, or of one below it
WITH RECURSIVE key (oid, parent) AS (
    SELECT own.oid, own.conparentid
      FROM pg_partition_tree(%(oid)s::oid::regclass) AS tree JOIN pg_constraint AS own ON own.confrelid = tree.relid
     WHERE own.contype = 'f' AND own.confdeltype IN ('c', 'n', 'd')
    UNION
    SELECT above.oid, above.conparentid FROM key JOIN pg_constraint AS above ON above.oid = key.parent
)
SELECT format('%%s of %%s', conname, conrelid::regclass) AS name
  FROM key JOIN pg_constraint USING (oid) WHERE parent = 0 ORDER BY 1

-- subscribed: publications that tell of a row's deletion in a partition, or in one below it
SELECT DISTINCT pubname AS name FROM pg_publication_tables JOIN pg_publication USING (pubname)
 WHERE pubdelete AND to_regclass(format('%%I.%%I', schemaname, tablename)) IN (
           SELECT relid FROM pg_partition_tree(%(oid)s::oid::regclass)
           UNION SELECT relid FROM pg_partition_ancestors(%(oid)s::oid::regclass))
 ORDER BY 1

-- on_delete: triggers of a table and of each one below it that a DELETE fires, and how they are enabled
SELECT namespace.nspname AS schema, class.relname AS table, tgname AS name, tgenabled::text AS enabled
  FROM pg_partition_tree(%(oid)s::oid::regclass) AS tree
  JOIN pg_class AS class ON class.oid = tree.relid
  JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
  JOIN pg_trigger ON tgrelid = class.oid
 WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype::int & 8 <> 0
 ORDER BY class.oid, tgname

-- settings: what a new partition takes over from its table, and from its newest sibling
SELECT parent.relrowsecurity AS row_security, parent.relforcerowsecurity AS force_row_security,
       parent.relreplident::text AS replica_identity,
       sibling.options,
       (SELECT spcname FROM pg_tablespace WHERE oid = parent.reltablespace) AS tablespace,
       ARRAY(SELECT json_build_array(attname, attstattarget) FROM pg_attribute
              WHERE attrelid = parent.oid AND attnum > 0 AND NOT attisdropped AND attstattarget >= 0)
           AS statistics
  FROM pg_class AS parent
  LEFT JOIN LATERAL (
       SELECT coalesce(child.reloptions, '{}') || ARRAY(
                  SELECT 'toast.' || option FROM pg_class AS toast CROSS JOIN unnest(toast.reloptions) AS option
                   WHERE toast.oid = child.reltoastrelid) AS options
         FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
        WHERE inhparent = parent.oid AND child.relkind = 'r' AND child.oid <> %(child)s
        ORDER BY child.oid DESC LIMIT 1) AS sibling ON true
 WHERE parent.oid = %(oid)s

-- grants: privileges on a table and on single columns of it, one row for each that was granted
SELECT CASE WHEN acl.grantee = 0 THEN NULL ELSE pg_get_userbyid(acl.grantee) END AS grantee,
       acl.privilege_type AS privilege, acl.is_grantable, granted.column
  FROM pg_class
 CROSS JOIN LATERAL (
       SELECT relacl AS acl, NULL::name AS column, 0 AS attnum
        UNION ALL
       SELECT attacl, attname, attnum FROM pg_attribute WHERE attrelid = pg_class.oid AND NOT attisdropped
       ) AS granted
 CROSS JOIN LATERAL aclexplode(granted.acl) AS acl
 WHERE oid = %(oid)s AND acl.grantee <> relowner
 ORDER BY granted.attnum, grantee, privilege

-- detaching: sessions that work on detaching partitions of a table of this name
SELECT pid, application_name, extract(epoch FROM clock_timestamp() - query_start) AS seconds
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
   AND query ~* 'detach\s+partition' AND position(replace(%(name)s, '"', '""') IN query) > 0

-- lockers: who holds a relation, longest first; a prepared transaction holds it without a process
SELECT activity.pid, coalesce(activity.application_name, prepared.gid) AS application_name,
       coalesce(activity.usename, prepared.owner) AS usename, coalesce(activity.state, 'prepared') AS state,
       coalesce(left(activity.query, 200), 'PREPARE TRANSACTION') AS query,
       extract(epoch FROM clock_timestamp() - coalesce(activity.xact_start, prepared.prepared)) AS seconds
  FROM pg_locks AS locks
  LEFT JOIN pg_stat_activity AS activity USING (pid)
  LEFT JOIN pg_locks AS own
    ON locks.pid IS NULL AND own.pid IS NULL AND own.locktype = 'transactionid'
       AND own.virtualtransaction = locks.virtualtransaction
  LEFT JOIN pg_prepared_xacts AS prepared ON prepared.transaction = own.transactionid
 WHERE locks.locktype = 'relation' AND locks.granted AND locks.pid IS DISTINCT FROM pg_backend_pid()
   AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND locks.relation = ANY (%(oids)s)
   AND clock_timestamp() - coalesce(activity.xact_start, prepared.prepared) > %(older)s
 ORDER BY seconds DESC NULLS LAST

-- elders: who keeps an old snapshot of this database, for which the end of a detach waits
SELECT pid, application_name, usename, state, left(query, 200) AS query,
       extract(epoch FROM clock_timestamp() - xact_start) AS seconds
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
   AND clock_timestamp() - xact_start > %(older)s
 ORDER BY seconds DESC NULLS LAST

-- standing: what has become of a table since it was planned
SELECT child.oid::bigint AS oid, namespace.nspname AS schema, child.relname AS name,
       child.relispartition AS is_partition,
       (SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = child.oid) AS is_pending,
       (SELECT inhparent::bigint FROM pg_inherits WHERE inhrelid = child.oid) AS parent,
       pg_get_expr(child.relpartbound, child.oid) AS bound
  FROM pg_class AS child JOIN pg_namespace AS namespace ON namespace.oid = child.relnamespace
 WHERE child.oid = %(oid)s

-- ledger_exists: whether this database may have partitions on their way, and as this release notes them
SELECT to_regclass('pgvigil.departure') IS NOT NULL AS found,
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('pgvigil.departure')
                  AND attname = 'manifest_sha256') AS is_current

-- ledger_is_ours: whether what infra/target.sql makes is there and this role's to write
SELECT coalesce(has_schema_privilege(to_regnamespace('pgvigil'), 'USAGE')
                AND has_table_privilege(to_regclass('pgvigil.departure'), 'INSERT')
                AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('pgvigil.departure')
                               AND attname = 'manifest_sha256')
                AND has_function_privilege(to_regprocedure('pgvigil.refuse_write()'), 'EXECUTE'), false) AS found

-- ledger: the partitions of a table that are on their way
SELECT id, state, relation, schema, name, parent, bound, condition, since, detached_at, fence, manifest,
       manifest_sha256, leaves
  FROM pgvigil.departure WHERE parent = %(oid)s ORDER BY since, id

-- ledger_begin: note that a partition is about to leave
INSERT INTO pgvigil.departure (id, state, relation, schema, name, parent, bound, condition)
VALUES (%(id)s, 'leaving', %(relation)s, %(schema)s, %(name)s, %(parent)s, %(bound)s, %(condition)s)

-- ledger_forget_return: a partition that had come back leaves again
DELETE FROM pgvigil.departure WHERE relation = %(relation)s AND state = 'returned'

-- ledger_fenced: note that no writer can reach it any more; what was copied behind another fence is not its copy
UPDATE pgvigil.departure
   SET id = %(new)s, state = 'fenced', detached_at = clock_timestamp(), fence = %(fence)s,
       manifest = NULL, manifest_sha256 = NULL, leaves = '{}'
 WHERE id = %(old)s
RETURNING id

-- ledger_sealed: note which manifest is about to be written
UPDATE pgvigil.departure SET manifest_sha256 = %(sha256)s WHERE id = %(id)s

-- ledger_archived: note where its proven copy is
UPDATE pgvigil.departure SET state = 'archived', manifest = %(manifest)s WHERE id = %(id)s

-- ledger_leaf: note that one table's copy is whole in the store
UPDATE pgvigil.departure SET leaves = leaves || jsonb_build_object(%(relation)s::text, %(stored)s::jsonb)
 WHERE id = %(id)s

-- ledger_forget_leaves: their copies are not what they should be
UPDATE pgvigil.departure SET leaves = leaves - %(relations)s::text[] WHERE id = %(id)s

-- ledger_renew: a table whose fence was opened is to be fenced and copied anew
UPDATE pgvigil.departure
   SET state = 'leaving', fence = NULL, manifest = NULL, manifest_sha256 = NULL, leaves = '{}'
 WHERE id = %(id)s

-- ledger_end: it has arrived
DELETE FROM pgvigil.departure WHERE id = %(id)s

-- ledger_returning: note a table that was rebuilt from its copy
INSERT INTO pgvigil.departure (id, state, relation, schema, name, parent, bound, condition, manifest)
VALUES (%(id)s, 'returning', %(relation)s, %(schema)s, %(name)s, %(parent)s, %(bound)s, %(condition)s,
        %(manifest)s)
ON CONFLICT (id) DO UPDATE
   SET state = 'returning', relation = excluded.relation, schema = excluded.schema, name = excluded.name,
       parent = excluded.parent, since = clock_timestamp()
 WHERE departure.state IN ('returning', 'returned')
RETURNING id

-- ledger_returned: note that it came back, so that it is left alone for a while
UPDATE pgvigil.departure SET state = 'returned', since = clock_timestamp() WHERE id = %(id)s

-- fence: everything that must be unchanged for a fence to have held, of a table and each one below it
WITH RECURSIVE tree AS (
    SELECT oid, relkind, NULL::text AS place, 0 AS depth FROM pg_class WHERE oid = %(oid)s
     UNION ALL
    SELECT child.oid, child.relkind, tree.oid::bigint || '/' || inherits.xmin::text, tree.depth + 1
      FROM tree
      JOIN pg_inherits AS inherits ON inherits.inhparent = tree.oid AND tree.relkind = 'p'
      JOIN pg_class AS child ON child.oid = inherits.inhrelid
)
SELECT tree.relkind::text AS kind, jsonb_build_object(
           'relation', child.oid::bigint,
           'kind', child.relkind::text,
           -- Rows are read by name.
           'schema', namespace.nspname,
           'name', child.relname,
           -- ALTER COLUMN … TYPE … USING writes every row anew and fires no trigger; its rows are in another file.
           'file', pg_relation_filenode(child.oid)::bigint,
           'function', (SELECT proc.oid::bigint || '/' || proc.xmin::text FROM pg_proc AS proc
                         WHERE proc.oid = to_regprocedure('pgvigil.refuse_write()')),
           'triggers', (SELECT jsonb_agg(trig.oid::bigint || '/' || trig.xmin::text || '/' || trig.tgenabled::text
                                         ORDER BY trig.oid)
                          FROM pg_trigger AS trig
                         WHERE trig.tgrelid = child.oid
                           AND trig.tgname IN ('pgvigil_no_write', 'pgvigil_no_truncate')),
           'columns', (SELECT md5(string_agg(concat_ws('/', attnum, attname, atttypid, atttypmod, attisdropped,
                                                       attgenerated, attcollation, atthasmissing), ',' ORDER BY attnum))
                         FROM pg_attribute WHERE attrelid = child.oid AND attnum > 0)
       ) || CASE WHEN place IS NULL THEN '{}' ELSE jsonb_build_object('place', place) END AS fence
  FROM tree JOIN pg_class AS child USING (oid) JOIN pg_namespace AS namespace ON namespace.oid = child.relnamespace
 ORDER BY tree.depth, child.oid

-- leaves: the tables that can hold rows of a table: itself, or the leaves below it
WITH RECURSIVE tree AS (
    SELECT oid, relkind FROM pg_class WHERE oid = %(oid)s
     UNION ALL
    SELECT child.oid, child.relkind
      FROM tree
      JOIN pg_inherits AS inherits ON inherits.inhparent = tree.oid AND tree.relkind = 'p'
      JOIN pg_class AS child ON child.oid = inherits.inhrelid
)
SELECT namespace.nspname AS schema, class.relname AS name
  FROM tree
  JOIN pg_class AS class USING (oid)
  JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
 WHERE tree.relkind <> 'p'
 ORDER BY class.oid

-- relation: a relation of this name, whatever it is
SELECT relation.oid::bigint AS oid, relation.relispartition AS is_partition
  FROM pg_class AS relation JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
 WHERE namespace.nspname = %(schema)s AND relation.relname = %(name)s

-- may_become: whether this role may act as another
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s AND pg_has_role(oid, 'MEMBER')) AS may

-- key_state: whether a foreign key of a table was checked
SELECT convalidated AS is_proven
  FROM pg_constraint JOIN pg_class AS class ON class.oid = conrelid
  JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
 WHERE nspname = %(schema)s AND relname = %(name)s AND conname = %(key)s AND contype = 'f'

-- references: the foreign keys by which rows refer to those of a partition, with what its detach compares
SELECT foreign_key.conname AS name, foreign_key.conrelid::regclass::text AS table, namespace.nspname AS schema,
       class.relname AS relation, class.relkind = 'p' AS is_partitioned,
       array_agg(ours.attname ORDER BY place) AS own, array_agg(theirs.attname ORDER BY place) AS columns,
       array_agg(operator.oprname ORDER BY place) AS operators,
       array_agg(operators.nspname ORDER BY place) AS schemas
  FROM pg_constraint AS foreign_key
  JOIN pg_class AS class ON class.oid = foreign_key.conrelid
  JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
 CROSS JOIN LATERAL unnest(confkey, conkey, conpfeqop) WITH ORDINALITY AS pair (own, theirs, operator, place)
  JOIN pg_attribute AS ours ON ours.attrelid = foreign_key.confrelid AND ours.attnum = pair.own
  JOIN pg_attribute AS theirs ON theirs.attrelid = foreign_key.conrelid AND theirs.attnum = pair.theirs
  JOIN pg_operator AS operator ON operator.oid = pair.operator
  JOIN pg_namespace AS operators ON operators.oid = operator.oprnamespace
 WHERE foreign_key.contype = 'f' AND foreign_key.confrelid = %(oid)s AND foreign_key.conparentid <> 0
 GROUP BY foreign_key.oid, namespace.nspname, class.relname, class.relkind
 ORDER BY 2, 1

-- own_check: whether a table itself has a CHECK of this name
SELECT oid::bigint AS oid FROM pg_constraint WHERE conrelid = %(oid)s AND conname = %(name)s AND contype = 'c'

-- snapshots: who holds a snapshot of this database since before, other than those who wait for this session
SELECT pid, application_name, usename, state, left(query, 200) AS query,
       extract(epoch FROM clock_timestamp() - xact_start) AS seconds
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
   AND backend_type = 'client backend' AND xact_start < %(before)s
   AND NOT CASE WHEN wait_event_type = 'Lock' THEN pg_backend_pid() = ANY (pg_blocking_pids(pid)) ELSE false END
 ORDER BY xact_start
